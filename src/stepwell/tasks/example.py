"""What a task makes: a text with targets, its tokens with labels, and batches of them.

Owns these values and the rule that puts an example into a split. Knows no task and no tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stepwell.errors import DataError
from stepwell.tasks.packing import first_fit

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
    """A row of tokens. labels[t] is the id that the logits at t should favour, or IGNORE.

    `segments` says which document each token belongs to where the row holds several, counted from
    0 in their order.
    """

    ids: list[int]
    labels: list[int]
    depths: list[int]
    segments: list[int] | None = None

    @classmethod
    def joined(cls, rows: Iterable[Encoded]) -> Encoded:
        """The rows one after the other in one row, each a document of its own."""
        segments: list[int] = []
        whole = cls([], [], [], segments)
        for row in rows:
            first = max(segments, default=-1) + 1
            segments += [first + number for number in row.segments or [0] * len(row.ids)]
            whole.ids.extend(row.ids)
            whole.labels.extend(row.labels)
            whole.depths.extend(row.depths)
        return whole


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens, each of ids, labels and depths [B, T] int64, padded on the right.

    Padding has the label IGNORE and the depth 0; its id matters to no earlier position. `segments`
    [B, T] int64 says which document of its row each token belongs to, from 0; None: each row is
    one. `model(batch.ids, segments=batch.segments)` reads each document by itself.
    """

    ids: Tensor
    labels: Tensor
    depths: Tensor
    segments: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[Encoded], *, pad: int = 0) -> Batch:
        """The rows above each other. Columns after the last label of all rows are left out: they
        teach nothing, so T is at most the longest row."""
        width = max((len(row.ids) for row in rows), default=0)
        parts = [
            _padded([row.ids for row in rows], width, pad),
            _padded([row.labels for row in rows], width, IGNORE),
            _padded([row.depths for row in rows], width, 0),
        ]
        if any(row.segments is not None for row in rows):
            parts.append(_padded([row.segments or [] for row in rows], width, 0))
        return cls.of_tables(*parts)

    @classmethod
    def of_tables(cls, *tables: NDArray[np.int64]) -> Batch:
        """As `of`, of ids, labels, depths and, where there are any, segments, each [B, T]."""
        import torch

        labelled = np.flatnonzero((tables[1] != IGNORE).any(axis=0))
        used = int(labelled[-1]) + 1 if labelled.size else 0
        return cls(*(torch.from_numpy(table[:, :used].copy()) for table in tables))

    @classmethod
    def packed(cls, rows: Sequence[Encoded], *, width: int, pad: int = 0) -> Batch:
        """Several of the rows in each row of the batch, which is no wider than `width`.

        The same labels after the same tokens of the same document: packing moves documents and
        changes none.
        """
        shared = first_fit([len(row.ids) for row in rows], width)
        joined = [Encoded.joined(rows[place] for place in places) for places in shared]
        return cls.of(joined, pad=pad)

    def rows(self) -> list[Encoded]:
        """Each row up to its last label; what follows teaches nothing."""
        lists = [tensor.tolist() for tensor in self._tensors()]
        ends = [_last_label(labels) + 1 for labels in self.labels.tolist()]
        return [
            Encoded(*(part[:end] for part in row)) for *row, end in zip(*lists, ends, strict=True)
        ]

    def parts(self, num_parts: int) -> list[Batch]:
        """The batch in parts of rows, some of them without a row where there are too few."""
        divided = (tensor.tensor_split(num_parts) for tensor in self._tensors())
        return [Batch(*part) for part in zip(*divided, strict=True)]

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device; the copy may still be under way when this returns."""
        return Batch(*(part.to(device, non_blocking=True) for part in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        """The tensors that there are, in the order of the fields."""
        parts = (self.ids, self.labels, self.depths, self.segments)
        return [part for part in parts if part is not None]


def _padded(rows: Sequence[Sequence[int]], width: int, pad: int) -> NDArray[np.int64]:
    """The rows as [B, width], filled up on the right."""
    table = np.full((len(rows), width), pad, dtype=np.int64)
    for filled, row in zip(table, rows, strict=True):
        filled[: len(row)] = row
    return table


def _last_label(labels: Sequence[int]) -> int:
    """The place of the last label, -1 where there is none."""
    return next((t for t in reversed(range(len(labels))) if labels[t] != IGNORE), -1)
