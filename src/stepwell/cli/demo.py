"""`stepwell demo`: from nothing to a trained ladder that answers each prompt as deep as it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

OUT = Path("runs/demo")


def demo(
    *,
    out: Annotated[Path, Parameter(help="folder for the ladder and the report")] = OUT,
    fresh: Annotated[bool, Parameter(negative=(), help="start over")] = False,
) -> None:
    """Train three sizes of a model, and answer prompts with the smallest that is good enough.

    Takes about three minutes on two CPU cores. A second run reuses what is there.
    """
