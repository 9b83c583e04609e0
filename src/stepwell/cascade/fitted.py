"""What is fitted for a ladder: predictor, calibration paths, costs, and the lambda to serve at.

The calibration paths are kept, not a policy, so that a request can name a lambda of its own:
solving takes milliseconds. Owns the folder that holds all of it:

    predictor.json  costs.json  calibration.safetensors
    fit.json        the rest, and the SHA-256 of the others; it comes last and makes them valid
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from stepwell.cascade.collect import Collected
from stepwell.cascade.costs import Costs
from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.paths import FloatArray, Paths
from stepwell.cascade.predictor import Predictor
from stepwell.cascade.stage import Stage
from stepwell.cascade.stopping import Policy, fit
from stepwell.cascade.tuning import LAMBDAS, fit_quality
from stepwell.config import fingerprint, read_json, write_atomically, write_json
from stepwell.errors import CascadeError, DataError, FormatError, StepwellError
from stepwell.storage.staging import staged

QUALITY_MARGIN: Final = 0.005  # on calibration prompts, so that new ones stay within a point
MOST_POLICIES: Final = 256  # kept solved; a server is asked for any number of lambdas
HEAD: Final = "fit.json"
PREDICTOR: Final = "predictor.json"
COSTS: Final = "costs.json"
CALIBRATION: Final = "calibration.safetensors"
FIT_AGAIN: Final = "fit the ladder again."

Part = TypeVar("Part")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """What fit.json says: fingerprints of the stages, lambda, and hashes of the other files.

    seal: the hash of all that.
    """

    stages: tuple[str, ...]
    lam: float | None
    files: dict[str, str]
    seal: str = ""

    KIND: ClassVar[str] = "fitted ladder"
    VERSION: ClassVar[int] = 1

    def sealed(self) -> Head:
        """The same with its seal."""
        return replace(self, seal=fingerprint([self.stages, self.lam, self.files]))


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything that deciding needs, and the fingerprints of the stages that it was fitted for.

    `lam` is what `lambda: auto` stands for; None where the ladder file named a number.
    """

    predictor: Predictor
    calibration: Paths
    costs: Costs
    lam: float | None
    fingerprints: tuple[str, ...]
    _policies: dict[tuple[object, ...], Policy] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        counts = (
            self.predictor.num_stages,
            self.calibration.num_stages,
            len(self.costs.stages),
            len(self.fingerprints),
        )
        if len(set(counts)) > 1:
            raise CascadeError(
                "Predictor, paths, costs and fingerprints are of ladders with"
                f" {', '.join(map(str, counts))} stages.",
                fix=FIT_AGAIN,
            )

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

        `lambda: auto` takes the cheapest one that keeps the largest stage's quality within half a
        point on the calibration prompts; where none does, the largest, and a warning says so.
        """
        predictor = Predictor.fit(
            predictor_data.features, predictor_data.good, predictor_data.weights
        )
        paths = calibration_data.paths(predictor)
        lam = _auto(paths, costs, config) if config.policy.lam == "auto" else None
        return cls(predictor, paths, costs, lam, tuple(stage.fingerprint for stage in stages))

    def lambda_for(self, config: LadderConfig) -> float:
        """The lambda for requests that name none: the ladder file's number, or what auto chose."""
        lam = self.lam if config.policy.lam == "auto" else config.policy.lam
        if lam is None:
            raise CascadeError(
                "The ladder was fitted when its file gave lambda as a number; now it says auto.",
                fix="fit the ladder again, or give lambda as a number.",
            )
        return float(lam)

    def policy(self, lam: float, config: LadderConfig) -> Policy:
        """The rule at a price, solved once for each."""
        kappa = config.policy.risk.kappa
        key = (lam, kappa, config.costs, config.serving.max_rows)
        if key not in self._policies:
            if len(self._policies) >= MOST_POLICIES:
                self._policies.clear()
            prices = unit_costs(self.costs, config)
            self._policies[key] = fit(self.calibration, prices, lam, kappa)
        return self._policies[key]

    def save(self, directory: str | Path) -> None:
        """Write all of it into a directory, in place of what was fitted before: all or nothing."""
        with staged(Path(directory), marker=HEAD, belongs=_FILES.__contains__) as new:
            self.predictor.save(new / PREDICTOR)
            self.costs.save(new / COSTS)
            write_atomically(new / CALIBRATION, save(_arrays(self.calibration)))
            digests = {name: _digest(new / name) for name in (PREDICTOR, COSTS, CALIBRATION)}
            head = Head(self.fingerprints, self.lam, digests).sealed()
            write_json(new / HEAD, to_document(head, Head.KIND, Head.VERSION))

    @classmethod
    def load(cls, directory: str | Path) -> Fitted:
        """What `save` wrote.

        Raises CascadeError where the ladder was never fitted or a file, which it names, is damaged,
        and FormatError where a newer version wrote it.
        """
        directory = Path(directory)
        if not (directory / HEAD).is_file():
            raise CascadeError(
                f"{directory} holds no fitted stopping rule.",
                fix="check the ladder file's name, or run `stepwell demo` to make a ladder.",
            )
        head = _read(directory / HEAD, _read_head)
        for name, digest in head.files.items():
            if not (directory / name).is_file() or _digest(directory / name) != digest:
                raise CascadeError(f"{directory / name} is missing or damaged.", fix=FIT_AGAIN)
        return cls(
            _read(directory / PREDICTOR, Predictor.load),
            _read(directory / CALIBRATION, _read_paths),
            _read(directory / COSTS, Costs.load),
            head.lam,
            head.stages,
        )


_FILES: Final = frozenset({HEAD, PREDICTOR, COSTS, CALIBRATION})


def unit_costs(costs: Costs, config: LadderConfig) -> FloatArray:
    """Costs [K] in units of the largest stage's, by the measure that the ladder file names."""
    measured = costs.flops() if config.costs == "flops" else costs.seconds(config.serving.max_rows)
    relative: FloatArray = measured / measured[-1]
    return relative


def _auto(paths: Paths, costs: Costs, config: LadderConfig) -> float | None:
    """The lambda that `auto` stands for."""
    prices, kappa = unit_costs(costs, config), config.policy.risk.kappa
    try:
        policy = fit_quality(paths, prices, QUALITY_MARGIN, kappa)
    except CascadeError as error:
        logger.warning("%s The ladder is fitted for that lambda.", error.problem)
        return float(LAMBDAS[-1])
    return policy.lam


def _arrays(paths: Paths) -> dict[str, FloatArray]:
    """The arrays of paths by name, as safetensors wants them: in C order."""
    arrays = {"beliefs": paths.beliefs, "good": paths.good, "weights": paths.weights}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _read(path: Path, read: Callable[[Path], Part]) -> Part:
    """What `read` gives; where it fails, the error names the file and is one of two."""
    try:
        return read(path)
    except FormatError as error:
        raise FormatError(f"{path}: {error.problem}", fix=error.fix) from None
    except StepwellError as error:
        problem = error.problem.removeprefix(f"{path}: ")
        raise CascadeError(f"{path} is damaged: {problem}", fix=FIT_AGAIN) from None


def _read_head(path: Path) -> Head:
    head = from_document(Head, read_json(path), Head.KIND, Head.VERSION)
    if head.files.keys() != _FILES - {HEAD}:
        raise DataError(f"it is about the files {', '.join(head.files) or 'none'}.")
    if head != head.sealed():
        raise DataError("its SHA-256 is not the one in it.")
    return head


def _read_paths(path: Path) -> Paths:
    try:
        arrays = load_file(path)
        return Paths(arrays["beliefs"], arrays["good"], arrays["weights"])
    except (SafetensorError, KeyError) as error:
        raise DataError(f"not the arrays expected ({error}).") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
