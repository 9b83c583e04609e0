"""Running text from a file: windows of a corpus in which every next token is trained.

Owns `FileTask` as well: a task whose data is a file of the user's, with a tokenizer made for it.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from stepwell.errors import DataError
from stepwell.tasks.base import Task
from stepwell.tasks.example import Batch, Encoded, Example, Target
from stepwell.tasks.rows import read_text
from stepwell.tasks.windows import WindowTask
from stepwell.text.tokenizer import Tokenizer


class FileTask(Task):
    """A task whose data is a text file in UTF-8. What it is called and where it lies do not matter
    to the fingerprint; its content does."""

    path: Path = pydantic.Field(description="a text file in UTF-8")
    tokens: Literal["character", "byte", "bpe"] = pydantic.Field(
        default="character", description="what a token is; bpe is trained on the file"
    )
    vocab_size: int = pydantic.Field(
        default=1024, ge=257, le=1_000_000, description="tokens of a bpe tokenizer, at most"
    )

    @abstractmethod
    def texts(self) -> Sequence[str]:
        """All texts of the file: their characters are the alphabet."""

    @abstractmethod
    def taught(self) -> Sequence[str]:
        """The texts of the train split: a BPE is trained on nothing else."""

    @cached_property
    def text(self) -> str:
        """The content of the file. Raises DataError where it is missing, empty or not UTF-8."""
        return read_text(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """One token a character of the file, one a byte, or a BPE trained on the train split."""
        return self.made_tokenizer({"eos": "<eos>"} if self.ends else {})

    def made_tokenizer(self, roles: Mapping[str, str]) -> Tokenizer:
        """A tokenizer as `tokens` says, with special tokens for these roles."""
        if self.tokens == "character":
            return Tokenizer.character(sorted(set().union(*self.texts())), roles=roles)
        if self.tokens == "byte":
            return Tokenizer.byte(roles=roles)
        return Tokenizer.train_bpe(self.taught(), self.vocab_size, roles=roles)

    def identity(self) -> dict[str, Any]:
        """The plain values, with the file's content in place of its path."""
        return {**super().identity(), "path": hashlib.sha256(self.text.encode()).hexdigest()}


class Corpus(WindowTask, FileTask):
    """Windows drawn evenly from a text; all their next tokens are trained.

    The splits are parts of the file: the first 90% of its tokens are the train split, the next 5%
    validation, the last 5% test. No window reaches across.
    """

    ends: ClassVar[bool] = False

    def texts(self) -> Sequence[str]:
        """The file as one text."""
        return [self.text]

    def taught(self) -> Sequence[str]:
        """The first 90% of the characters."""
        return [self.text[: len(self.text) * 90 // 100]]

    def example(self, index: int) -> Example:
        """A window from anywhere in the file: `window` + 1 tokens, the last one only a label."""
        return self._shown(self._windows(0, len(self._stream), [index])[0])

    def example_in(self, split: str, i: int) -> Example:
        """A window from the split's part of the file."""
        return self._shown(self._windows(*self._part(split), [i])[0])

    def encode(self, example: Example) -> Encoded:
        """All tokens but the last, each labelled with the one that follows."""
        ids = list(example.ids or self.tokenizer.encode(example.text))
        return Encoded(ids[:-1], ids[1:], [0] * (len(ids) - 1))

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The same as one window after the other, gathered at once."""
        import torch

        windows = self._windows(*self._part(split), indices)
        ids, labels = (torch.from_numpy(part.copy()) for part in (windows[:, :-1], windows[:, 1:]))
        return Batch(ids, labels, torch.zeros_like(ids))

    def _shown(self, window: NDArray[np.int64]) -> Example:
        ids = tuple(window.tolist())
        text = self.tokenizer.decode(ids, skip_special=False)
        return Example(text, (Target(0, text),), ids=ids)

    def _windows(self, begin: int, end: int, indices: Sequence[int]) -> NDArray[np.int64]:
        """The windows of tokens begin..end drawn at `indices`, [B, window + 1] int64."""
        places = end - begin - self.window
        if places < 1:
            raise DataError(
                f"{self.path}: a part of {end - begin} tokens holds no window of {self.window}.",
                fix="give a longer text or a smaller window.",
            )
        starts = begin + (self.uniform(indices) * places).astype(np.int64)
        windows: NDArray[np.int32] = self._stream[starts[:, None] + np.arange(self.window + 1)]
        return windows.astype(np.int64)

    def _part(self, split: str) -> tuple[int, int]:
        """The positions at which a split begins and ends in the stream of tokens."""
        self.check_split(split)
        count = len(self._stream)
        borders = {"train": (0, 90), "validation": (90, 95), "test": (95, 100)}[split]
        return count * borders[0] // 100, count * borders[1] // 100

    @cached_property
    def _stream(self) -> NDArray[np.int32]:
        """The whole file as tokens."""
        if self.tokens != "character":
            return np.array(self.tokenizer.encode(self.text), dtype=np.int32)
        points = np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)
        characters, inverse = np.unique(points, return_inverse=True)
        ids = [self.tokenizer.id_of(chr(point)) for point in characters]
        return np.array(ids, dtype=np.int32)[inverse]
