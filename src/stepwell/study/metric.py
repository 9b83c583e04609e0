"""The metrics by which an answer is scored: their names, and what each measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Metric = Literal["logit_difference", "log_probability", "probability"]
METRIC_NAMES: Final[Mapping[str, str]] = {
    "logit_difference": "logit of the right answer less that of the wrong one",
    "log_probability": "log-probability of the right answer, nats",
    "probability": "probability of the right answer",
}
