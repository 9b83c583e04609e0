"""What is fitted for a ladder: predictor, calibration paths, costs, and the lambda to serve at.

The calibration paths are kept, not a policy, so that a request can name a lambda of its own:
solving takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from stepwell.cascade.collect import Collected
from stepwell.cascade.costs import Costs
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.paths import FloatArray, Paths
from stepwell.cascade.predictor import Predictor
from stepwell.cascade.stage import Stage
from stepwell.cascade.stopping import Policy, fit
from stepwell.cascade.tuning import fit_quality
from stepwell.config import read_json, write_atomically, write_json
from stepwell.errors import CascadeError, FormatError

FORMAT_VERSION = 1
QUALITY_MARGIN = 0.01


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything that deciding needs, and the fingerprints of the stages that it was fitted for.

    `lam` serves requests that name none.
    """

    predictor: Predictor
    calibration: Paths
    costs: Costs
    lam: float
    fingerprints: tuple[str, ...]
    _policies: dict[tuple[float, str], Policy] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        config: LadderConfig,
        stages: Sequence[Stage],
        predictor_data: Collected,
        calibration_data: Collected,
        costs: Costs,
    ) -> Fitted:
        """Fit predictor and rule on disjoint prompts, and choose lambda as the ladder file asks.

        `lambda: auto` takes the cheapest one that keeps the largest stage's quality within a point
        on the calibration prompts.
        """
        predictor = Predictor.fit(
            predictor_data.features, predictor_data.good, predictor_data.weights
        )
        paths = Paths(
            predictor.paths_by_state(calibration_data.features),
            calibration_data.good,
            calibration_data.weights,
        )
        lam = config.policy.lam
        if lam == "auto":
            prices = unit_costs(costs, config)
            kappa = config.policy.risk.kappa
            lam = fit_quality(paths, prices, QUALITY_MARGIN, kappa).lam or 1.0
        return cls(predictor, paths, costs, lam, tuple(stage.fingerprint for stage in stages))

    def policy(self, lam: float, config: LadderConfig) -> Policy:
        """The rule at a price, solved once for each."""
        key = (lam, config.fingerprint)
        if key not in self._policies:
            prices = unit_costs(self.costs, config)
            self._policies[key] = fit(self.calibration, prices, lam, config.policy.risk.kappa)
        return self._policies[key]

    def save(self, directory: str | Path) -> None:
        """Write all of it into a directory; fit.json comes last and makes it valid."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            "beliefs": self.calibration.beliefs,
            "good": self.calibration.good,
            "weights": self.calibration.weights,
        }
        self.predictor.save(directory / "predictor.json")
        self.costs.save(directory / "costs.json")
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        write_atomically(directory / "calibration.safetensors", save(contiguous))
        head = {"format_version": FORMAT_VERSION, "lambda": self.lam, "stages": self.fingerprints}
        write_json(directory / "fit.json", head)

    @classmethod
    def load(cls, directory: str | Path) -> Fitted:
        """What `save` wrote. Raises CascadeError where the ladder was never fitted."""
        directory = Path(directory)
        if not (directory / "fit.json").is_file():
            raise CascadeError(
                f"{directory} holds no fitted stopping rule.",
                fix="run `stepwell demo` to make one.",
            )
        facts: dict[str, Any] = read_json(directory / "fit.json")
        if facts["format_version"] > FORMAT_VERSION:
            raise FormatError(
                f"{directory} has format {facts['format_version']}; this version reads up to"
                f" {FORMAT_VERSION}.",
                fix="update stepwell, or fit the ladder again.",
            )
        arrays = load_file(directory / "calibration.safetensors")
        return cls(
            Predictor.load(directory / "predictor.json"),
            Paths(arrays["beliefs"], arrays["good"], arrays["weights"]),
            Costs.load(directory / "costs.json"),
            float(facts["lambda"]),
            tuple(facts["stages"]),
        )


def unit_costs(costs: Costs, config: LadderConfig) -> FloatArray:
    """Costs [K] in units of the largest stage's, by the measure that the ladder file names."""
    measured = costs.flops() if config.costs == "flops" else costs.seconds(config.serving.max_rows)
    relative: FloatArray = measured / measured[-1]
    return relative
