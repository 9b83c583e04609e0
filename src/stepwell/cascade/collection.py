"""The stages' answers on disk: collected in parts, so that a stop loses a part at most.

    collection.json          what was asked of whom: written first; another ladder is refused
    part-00000.safetensors   features, labels, shares and weights of the first prompts
    part-00000.json          their prompts and answers; it comes last and makes the part valid

Owns these files and which questions are still open. What is learnt from answers is collect.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stepwell.cascade.beliefs.features import FeatureSet, Seen
from stepwell.cascade.collect import Collected
from stepwell.cascade.documents import from_document, to_document
from stepwell.config import read_json, write_atomically, write_json
from stepwell.errors import CascadeError, DataError, StepwellError
from stepwell.tasks.questions import Question

PART: Final = 500  # questions
HEAD: Final = "collection.json"
ARRAYS: Final = ("prompt", "answers", "pairs", "good", "accepted", "sure", "weights", "depths")
COLLECT: Final = "delete the folder, or give another, and collect again."


@dataclass(frozen=True)
class Asked:
    """What a collection holds answers to: fingerprints of the stages and of all that shapes them.

    source: that of the questions without their number, so that more of them can follow.
    """

    stages: tuple[str, ...]
    features: tuple[str, ...]
    source: str
    sampling: str
    rollouts: int

    KIND: ClassVar[str] = "collected answers"
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class _Part:
    """The texts of a part, and the SHA-256 of its arrays."""

    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    arrays: str

    KIND: ClassVar[str] = "part of collected answers"
    VERSION: ClassVar[int] = 1


class Collection:
    """A folder of answers to the first questions of a list that may grow."""

    def __init__(self, directory: str | Path, asked: Asked, features: FeatureSet) -> None:
        self.directory, self.asked, self.features = Path(directory), asked, features

    def open(self) -> None:
        """Make the folder, or go on with one. Raises CascadeError where it is of other answers."""
        head = self.directory / HEAD
        if not head.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(head, to_document(self.asked, Asked.KIND, Asked.VERSION))
            return
        found = from_document(Asked, read_json(head), Asked.KIND, Asked.VERSION)
        for name, now in vars(self.asked).items():
            if getattr(found, name) != now:
                raise CascadeError(
                    f"{self.directory} holds answers that were asked for otherwise: its {name} are"
                    " not those of the ladder now.",
                    fix=COLLECT,
                )

    def collect(
        self,
        questions: Sequence[Question],
        ask: Callable[[Sequence[Question]], Collected],
        on_part: Callable[[int], object] = int,
    ) -> Collected:
        """The answers to all questions, those that are missing asked for now, part by part.

        `on_part` is told how many are there after each part. What is there of other questions is
        refused with a CascadeError.
        """
        self.open()
        parts: list[Collected] = []
        for number, start in enumerate(range(0, len(questions), PART)):
            wanted = questions[start : start + PART]
            part = self._read(number)
            if part is None or len(part) < len(wanted):
                part = ask(wanted)
                self._write(number, part)
            if part.prompts[: len(wanted)] != tuple(each.prompt for each in wanted):
                raise CascadeError(
                    f"{self.directory / _name(number)} holds answers to other questions.",
                    fix=COLLECT,
                )
            parts.append(part if len(part) == len(wanted) else part.take(np.arange(len(wanted))))
            on_part(min(start + PART, len(questions)))
        return Collected.joined(parts)

    def read(self) -> Collected:
        """All answers that are there. Raises CascadeError where there are none."""
        self.open()
        parts: list[Collected] = []
        while (part := self._read(len(parts))) is not None:
            parts.append(part)
        if not parts:
            raise CascadeError(
                f"{self.directory} holds no answers.", fix="run `stepwell cascade collect` first."
            )
        return Collected.joined(parts)

    def _write(self, number: int, part: Collected) -> None:
        seen = part.seen
        values = (
            *(seen.prompt, seen.answers, seen.pairs),
            *(part.good, part.accepted, part.sure, part.weights, part.depths),
        )
        named = zip(ARRAYS, values, strict=True)
        payload = save({name: np.ascontiguousarray(value) for name, value in named})
        write_atomically(self.directory / f"{_name(number)}.safetensors", payload)
        texts = _Part(part.prompts, part.texts, hashlib.sha256(payload).hexdigest())
        path = self.directory / f"{_name(number)}.json"
        write_json(path, to_document(texts, _Part.KIND, _Part.VERSION))

    def _read(self, number: int) -> Collected | None:
        """A part, None where it was never finished. Raises CascadeError where it is damaged."""
        path = self.directory / f"{_name(number)}.json"
        if not path.exists():
            return None
        try:
            part = from_document(_Part, read_json(path), _Part.KIND, _Part.VERSION)
            payload = path.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(payload).hexdigest() != part.arrays:
                raise DataError("its SHA-256 is another.")
            arrays = load(payload)
            return Collected(
                part.prompts,
                Seen(self.features, arrays["prompt"], arrays["answers"], arrays["pairs"]),
                arrays["good"],
                arrays["accepted"],
                arrays["sure"],
                arrays["weights"],
                arrays["depths"],
                part.texts,
            )
        except (StepwellError, OSError, SafetensorError, KeyError) as error:
            raise CascadeError(
                f"{path.with_suffix('')} is damaged: {error}",
                fix="delete its two files; the same command asks its questions again.",
            ) from None


def _name(number: int) -> str:
    return f"part-{number:05d}"
