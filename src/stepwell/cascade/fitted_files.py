"""The folder in which lies what was fitted for a ladder, whole or not at all.

predictor.json  predictor.safetensors  costs.json  calibration.safetensors  certificate.json
fit.json        the rest, and the SHA-256 of the others; it comes last and makes them valid
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from stepwell.cascade.beliefs.predictor import Predictor
from stepwell.cascade.costs import Costs
from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.rule.certify import Certificate
from stepwell.cascade.rule.paths import FloatArray, Paths
from stepwell.config import fingerprint, read_json, write_atomically, write_json
from stepwell.errors import CascadeError, DataError, FormatError, StepwellError
from stepwell.storage.staging import staged

HEAD: Final = "fit.json"
PREDICTOR: Final = "predictor.json"
COSTS: Final = "costs.json"
CALIBRATION: Final = "calibration.safetensors"
CERTIFICATE: Final = "certificate.json"
FIT_AGAIN: Final = "fit the ladder again: `stepwell cascade fit`."
FILES: Final = frozenset(
    {HEAD, PREDICTOR, "predictor.safetensors", COSTS, CALIBRATION, CERTIFICATE}
)
NEEDED: Final = FILES - {HEAD, CERTIFICATE}

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class Parts:
    """What the folder holds: what is fitted, of which Fitted says what follows.

    accepted [N, K, K] and sure [N, K] are those of the calibration prompts (see Collected). `lam`
    is the lambda that `auto` stands for where nothing is certified.
    """

    predictor: Predictor
    calibration: Paths
    accepted: FloatArray
    sure: FloatArray
    costs: Costs
    lam: float
    fingerprints: tuple[str, ...]
    certificate: Certificate | None = None


@dataclass(frozen=True)
class Head:
    """What fit.json says: fingerprints of the stages, lambda, and hashes of the other files.

    seal: the hash of all that.
    """

    stages: tuple[str, ...]
    lam: float
    files: dict[str, str]
    seal: str = ""

    KIND: ClassVar[str] = "fitted ladder"
    VERSION: ClassVar[int] = 2

    def sealed(self) -> Head:
        """The same with its seal."""
        return replace(self, seal=fingerprint([self.stages, self.lam, self.files]))


def save_parts(parts: Parts, directory: str | Path) -> None:
    """Write all of it into a directory, in place of what was there before: all or nothing."""
    with staged(Path(directory), marker=HEAD, belongs=FILES.__contains__) as new:
        parts.predictor.save(new)
        parts.costs.save(new / COSTS)
        write_atomically(new / CALIBRATION, save(_arrays(parts)))
        if parts.certificate is not None:
            write_json(new / CERTIFICATE, parts.certificate.to_plain())
        names = sorted(path.name for path in new.iterdir() if path.name in FILES)
        digests = {name: _digest(new / name) for name in names}
        head = Head(parts.fingerprints, parts.lam, digests).sealed()
        write_json(new / HEAD, to_document(head, Head.KIND, Head.VERSION))


def load_parts(directory: str | Path) -> Parts:
    """What `save_parts` wrote.

    Raises CascadeError where the ladder was never fitted or a file, which it names, is damaged, and
    FormatError where a newer version wrote it.
    """
    directory = Path(directory)
    if not (directory / HEAD).is_file():
        raise CascadeError(
            f"{directory} holds no fitted stopping rule.",
            fix="check the ladder file's name, or fit it: `stepwell cascade fit LADDER`.",
        )
    if _version(directory / HEAD) == 1:
        raise CascadeError(
            f"{directory} was fitted by an earlier version of stepwell.", fix=FIT_AGAIN
        )
    head = _read(directory / HEAD, _read_head)
    for name, digest in head.files.items():
        if not (directory / name).is_file() or _digest(directory / name) != digest:
            raise CascadeError(f"{directory / name} is missing or damaged.", fix=FIT_AGAIN)
    calibration, accepted, sure = _read(directory / CALIBRATION, _read_paths)
    certified = CERTIFICATE in head.files
    return Parts(
        _read(directory / PREDICTOR, lambda path: Predictor.load(path.parent)),
        calibration,
        accepted,
        sure,
        _read(directory / COSTS, Costs.load),
        head.lam,
        head.stages,
        _read(directory / CERTIFICATE, _read_certificate) if certified else None,
    )


def _arrays(parts: Parts) -> dict[str, FloatArray]:
    """The calibration prompts by name, as safetensors wants them: in C order."""
    paths = parts.calibration
    arrays = {
        "beliefs": paths.beliefs,
        "good": paths.good,
        "weights": paths.weights,
        "accepted": parts.accepted,
        "sure": parts.sure,
    }
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


def _version(path: Path) -> object:
    """The format version that a file names; None where it is no file of ours."""
    with suppress(StepwellError):
        plain = read_json(path)
        return plain.get("format_version") if isinstance(plain, dict) else None
    return None


def _read_head(path: Path) -> Head:
    head = from_document(Head, read_json(path), Head.KIND, Head.VERSION)
    if not NEEDED <= head.files.keys() <= FILES - {HEAD}:
        raise DataError(f"it is about the files {', '.join(head.files) or 'none'}.")
    if head != head.sealed():
        raise DataError("its SHA-256 is not the one in it.")
    return head


def _read_paths(path: Path) -> tuple[Paths, FloatArray, FloatArray]:
    try:
        arrays = load_file(path)
        paths = Paths(arrays["beliefs"], arrays["good"], arrays["weights"])
        return paths, arrays["accepted"], arrays["sure"]
    except (SafetensorError, KeyError) as error:
        raise DataError(f"not the arrays expected ({error}).") from None


def _read_certificate(path: Path) -> Certificate:
    return Certificate.from_plain(read_json(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
