"""What one trial of an evaluation found: the values that are kept, and their two files.

    results.json          the numbers; it comes last and makes the trial finished
    outcomes.safetensors  per question: what each rule paid and whether it was right

Owns these files. What the numbers mean is said where they are measured.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.rule.exchange import Exchange
from stepwell.cascade.rule.paths import FloatArray
from stepwell.config import read_json, write_atomically, write_json
from stepwell.errors import CascadeError, DataError
from stepwell.evals.acceptance import Acceptance
from stepwell.evals.cascade import Row
from stepwell.evals.gates import ByDepth, Gate
from stepwell.evals.reliability import Reliability

RESULTS: Final = "results.json"
OUTCOMES: Final = "outcomes.safetensors"
AGAIN: Final = "delete that folder, or give another: what is missing is measured again."

Arrays = dict[str, FloatArray]


@dataclass(frozen=True)
class LiveRow:
    """A contestant run for real: seconds a question, relative to always the largest, and right."""

    name: str
    seconds: float
    relative: float
    quality: float


@dataclass(frozen=True)
class LambdaRow:
    """The ladder live at a lambda, None for its own.

    depth: stages run; highest: number of the largest one run. same: the share of questions that
    went through the stages that the replay says.
    """

    lam: float | None
    depth: float
    highest: float
    quality: float
    cost: float
    same: float


@dataclass(frozen=True)
class BudgetRow:
    """A mean cost that was asked for and what was paid, live; None where no policy is so cheap.

    cheapest: what the cheapest policy costs. error: paid / asked - 1. spendable: False where even
    the dearest policy costs less.
    """

    budget: float
    cheapest: float
    cost: float | None
    error: float | None
    spendable: bool = True


@dataclass(frozen=True)
class LatencyRow:
    """Seconds of a question asked alone."""

    name: str
    p50: float
    p95: float


@dataclass(frozen=True)
class Deciding:
    """Seconds a question of features, beliefs and decisions: in the batch, and alone (median)."""

    batch: float
    alone: float


@dataclass(frozen=True)
class CalibrationRow:
    """Reliability as plain numbers; auroc None where all are right or all are wrong."""

    name: str
    error: float
    brier: float
    auroc: float | None
    believed: tuple[float, ...]
    found: tuple[float, ...]

    @classmethod
    def of(cls, found: Reliability) -> CalibrationRow:
        """The numbers of a reliability."""
        auroc = None if math.isnan(found.auroc) else found.auroc
        curve = tuple(found.believed.tolist()), tuple(found.found.tolist())
        return cls(found.name, found.error, found.brier, auroc, *curve)


@dataclass(frozen=True)
class Shift:
    """Harder questions than any that the rule was fitted on.

    rows: rules as they were fitted and tuned before; refitted: the rule fitted anew on others of
    the harder questions. calibration: beliefs of the old rule; anew: of the new one.
    """

    questions: int
    rows: tuple[Row, ...]
    refitted: Row
    calibration: tuple[CalibrationRow, ...]
    anew: tuple[CalibrationRow, ...]


@dataclass(frozen=True)
class Certificate:
    """What was certified, None where nothing was tested; excess: the loss found on the test.

    Excess loss: the share of questions that the largest stage has right and the ladder wrong.
    words: what the certificate says of itself.
    """

    certified: bool | None
    epsilon: float | None
    delta: float | None
    lam: float | None
    words: str
    excess: float


@dataclass(frozen=True)
class TrialResult:
    """All that a trial found. `asked` is a fingerprint of what was evaluated, `arrays` the SHA-256
    of the other file; curves and rules name the rows of its arrays. seconds: by step."""

    task: str
    seed: int
    asked: str
    arrays: str
    batch: int
    stages: tuple[str, ...]
    counts: dict[str, int]
    gates: tuple[Gate, ...]
    won: tuple[float, ...]
    by_depth: ByDepth
    rules: tuple[Row, ...]
    curves: tuple[str, ...]
    exchange: Exchange
    lam: float | None
    live: tuple[LiveRow, ...]
    lambdas: tuple[LambdaRow, ...]
    budgets: tuple[BudgetRow, ...]
    latency: tuple[LatencyRow, ...]
    deciding: Deciding
    calibration: tuple[CalibrationRow, ...]
    gains: tuple[CalibrationRow, ...]
    acceptance: Acceptance
    shift: Shift | None
    certificate: Certificate
    seconds: dict[str, float]

    KIND: ClassVar[str] = "cascade trial"
    VERSION: ClassVar[int] = 1

    def rule(self, name: str) -> Row:
        """The row of a rule."""
        return next(row for row in self.rules if row.name == name)


def pack(arrays: Arrays) -> tuple[bytes, str]:
    """Arrays as safetensors holds them, and their SHA-256."""
    payload = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return payload, hashlib.sha256(payload).hexdigest()


def write_trial(directory: Path, result: TrialResult, payload: bytes) -> None:
    """Leave both files, results.json last."""
    write_atomically(directory / OUTCOMES, payload)
    write_json(directory / RESULTS, to_document(result, TrialResult.KIND, TrialResult.VERSION))


def read_trial(directory: Path, asked: str) -> tuple[TrialResult, Arrays] | None:
    """What a finished trial left, None where it is not finished.

    Raises CascadeError where it is damaged or evaluated something else, FormatError where newer.
    """
    path = directory / RESULTS
    if not path.exists():
        return None
    try:
        plain: Any = read_json(path)
        result = from_document(TrialResult, plain, TrialResult.KIND, TrialResult.VERSION)
        payload = (directory / OUTCOMES).read_bytes()
        if hashlib.sha256(payload).hexdigest() != result.arrays:
            raise DataError(f"the SHA-256 of {OUTCOMES} is another.")
        arrays: Arrays = load(payload)
    except (DataError, OSError, SafetensorError) as error:
        raise CascadeError(f"{directory} is damaged: {error}", fix=AGAIN) from None
    if result.asked != asked:
        raise CascadeError(
            f"{directory} holds the trial of another ladder or number of questions.", fix=AGAIN
        )
    return result, arrays
