"""What a task makes: a text with targets, its tokens with labels, and padded batches of them.

Owns these values and the rule that puts an example into a split. Knows no task and no tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepwell.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = -100  # the label that torch's cross entropy leaves out
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Target:
    """Something to be predicted.

    `start` is a character position in the example's text. Where `in_place`, the token at `start`
    is to be given the label `text` (one token); otherwise `text` stands at `start` and its tokens
    are to be predicted one after the other. `depth` is how hard it is, in the task's own measure.
    """

    start: int
    text: str
    depth: int = 0
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what is to be predicted in it. Raises DataError where a target does not fit.

    `weight` is the share of this example where a task lists its examples instead of drawing them.
    `ids` are the tokens, given only where the text does not determine them (a window of a corpus
    may begin in the middle of a word).
    """

    text: str
    targets: tuple[Target, ...]
    weight: float = 1.0
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for target in self.targets:
            in_place, start = target.in_place, target.start
            if in_place and 0 <= start < len(self.text):
                continue
            if in_place or start < 0 or not self.text.startswith(target.text, start):
                raise DataError(f"{target} does not fit the text {self.text[:60]!r}.")
        if not self.text or not self.targets:
            raise DataError(f"The example {self.text[:60]!r} holds nothing that can be learnt.")

    @classmethod
    def completion(cls, prompt: str, answer: str, depth: int = 0, weight: float = 1.0) -> Example:
        """An example whose text is `prompt + answer` and whose one target is the answer."""
        return cls(prompt + answer, (Target(len(prompt), answer, depth),), weight)

    @classmethod
    def in_place(cls, text: str, labels: Iterable[tuple[int, str, int]]) -> Example:
        """An example whose targets label tokens where they stand: (start, label, depth) each."""
        return cls(text, tuple(Target(start, label, depth, True) for start, label, depth in labels))

    @property
    def prompt(self) -> str:
        """The text before the answer; the whole text where the targets are in place."""
        first = self.targets[0]
        return self.text if first.in_place else self.text[: first.start]

    @property
    def answer(self) -> str:
        """The texts of all targets, joined: what a model should say."""
        return "".join(target.text for target in self.targets)

    @property
    def content(self) -> str:
        """What makes two examples the same question: the prompt, or else the whole text."""
        return self.prompt or self.text

    @property
    def split(self) -> str:
        """The split that this content belongs to."""
        return split_of(self.content)


def split_of(content: str) -> str:
    """The split of a content, by its hash: 90% train, 5% validation, 5% test."""
    share = hashlib.sha256(content.encode()).digest()[:4]
    twentieth = int.from_bytes(share, "big") * 20 >> 32
    return SPLITS[max(0, twentieth - 17)]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens. labels[t] is the id that the logits at t should favour, or IGNORE."""

    ids: list[int]
    labels: list[int]
    depths: list[int]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens, each of ids, labels and depths [B, T] int64, padded on the right.

    Padding has the label IGNORE and the depth 0; its id matters to no earlier position.
    """

    ids: Tensor
    labels: Tensor
    depths: Tensor

    @classmethod
    def of(cls, rows: Sequence[Encoded], *, pad: int = 0) -> Batch:
        """The rows side by side. Columns after the last label of all rows are left out: they teach
        nothing, so T is at most the longest row."""
        import torch

        width = max((len(row.ids) for row in rows), default=0)
        ids, labels, depths = np.zeros((3, len(rows), width), dtype=np.int64)
        ids += pad
        labels += IGNORE
        for i, row in enumerate(rows):
            length = len(row.ids)
            ids[i, :length], labels[i, :length], depths[i, :length] = (
                row.ids,
                row.labels,
                row.depths,
            )
        labelled = np.flatnonzero((labels != IGNORE).any(axis=0))
        used = int(labelled[-1]) + 1 if labelled.size else 0
        return cls(*(torch.from_numpy(part[:, :used].copy()) for part in (ids, labels, depths)))

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device; the copy may still be under way when this returns."""
        parts = (self.ids, self.labels, self.depths)
        return Batch(*(part.to(device, non_blocking=True) for part in parts))
