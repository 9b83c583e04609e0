"""Documents in files, tokenised once: windows of running text, each met once an epoch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from stepwell.config import fingerprint
from stepwell.errors import DataError, PromptError, TokenizerError
from stepwell.storage.user_cache import cache_folder
from stepwell.tasks.document_files import content_of, document_files, documents
from stepwell.tasks.example import IGNORE, SPLITS, Batch, Encoded, Example, Target, split_of
from stepwell.tasks.order import shuffled
from stepwell.tasks.shards import Shards, ShardWriter, kept_shards
from stepwell.tasks.windows import WindowTask
from stepwell.text.tokenizer import Tokenizer

CHUNK: Final = 2**22  # characters that are tokenised at once, on all cores
REPORTED: Final = 25  # chunks between two lines of progress
SHARDS_VERSION: Final = 1  # to be raised when the same documents would become other tokens

logger = logging.getLogger(__name__)


class Documents(WindowTask):
    """Windows of the documents in a file or directory; every next token is trained.

    Each document is in the split of its content, and ends with the end-of-sequence token. Those of
    a split follow one another in a stream, of which an epoch meets every window once. The tokens
    lie in the user's cache folder, addressed by the documents' content, and are read from there.
    """

    path: Path = pydantic.Field(description="a text file, a .jsonl file, or a directory of them")
    tokenizer_from: Path | None = pydantic.Field(
        default=None, description="a model directory whose tokenizer is taken"
    )
    tokens: Literal["character", "byte", "bpe"] = pydantic.Field(
        default="character", description="what a token is, where no tokenizer is taken"
    )
    vocab_size: int = pydantic.Field(
        default=1024, ge=257, le=1_000_000, description="tokens of a bpe tokenizer, at most"
    )
    separator: str = pydantic.Field(
        default="", description="the line between documents of a text file; else it is one"
    )
    across: bool = pydantic.Field(
        default=False, description="let attention go from a document to those before it"
    )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of `tokenizer_from`; else the one that was made of the train split."""
        return self._given_tokenizer or Tokenizer.load(self._shards.directory)

    def example(self, index: int) -> Example:
        """A window of the train split."""
        return self.example_in("train", index)

    def example_in(self, split: str, i: int) -> Example:
        """A window of the split: `window` + 1 tokens, the last one only a label."""
        [ids] = self._windows(split, [i]).tolist()
        text = self.tokenizer.decode(ids, skip_special=False)
        return Example(text, (Target(0, text),), ids=tuple(ids))

    def encode(self, example: Example) -> Encoded:
        """All tokens but the last, each labelled with the one that follows in its document."""
        ids = np.array([example.ids or self.tokenizer.encode(example.text)])
        return Encoded(*(table[0].tolist() for table in self._tables(ids)))

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The same as one window after the other, without their texts."""
        return Batch.of_tables(*self._tables(self._windows(split, indices)))

    def num_windows(self, split: str) -> int:
        """How many windows an epoch of a split has. Raises DataError where there is none."""
        self.check_split(split)
        stream = self._shards.index.streams[split]
        if stream.tokens <= self.window:
            raise DataError(
                f"{self.path}: the {split} split has {stream.documents} documents with"
                f" {stream.tokens} tokens, too few for a window of {self.window} and a label.",
                fix="give more documents or a smaller window.",
            )
        return (stream.tokens - 1) // self.window

    def identity(self) -> dict[str, Any]:
        """The plain values, with the documents' content for their path; the tokenizer counts by
        itself, wherever it is from."""
        plain = super().identity()
        del plain["tokenizer_from"]
        return {**plain, "path": self._content}

    # -- windows ---------------------------------------------------------------------------

    def epochs(self, count: int) -> dict[str, float]:
        """Windows taken over windows that there are."""
        return {"epoch": count / self.num_windows("train")}

    def _windows(self, split: str, indices: Sequence[int]) -> NDArray[np.int64]:
        """The windows at `indices`, [B, window + 1], each epoch in an order of its own."""
        count = self.num_windows(split)
        epochs, places = np.divmod(np.asarray(indices, dtype=np.int64), count)
        numbers: NDArray[np.int64] = np.empty_like(places)
        for epoch in np.unique(epochs):
            key = self._key(f"{split}/{epoch}") >> 64
            numbers[epochs == epoch] = shuffled(places[epochs == epoch], count, key)
        begins = (numbers * self.window).tolist()
        return np.stack([self._shards.read(split, begin, self.window + 1) for begin in begins])

    def _tables(self, windows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """ids, labels and depths, [B, window]; unless `across`, also segments: what follows an end
        is a document of its own."""
        ids, labels = windows[:, :-1], windows[:, 1:].copy()
        tables = [ids, labels, np.zeros_like(ids)]
        if not self.across:
            ended = ids == self.tokenizer.eos_id
            labels[ended] = IGNORE
            tables.append(ended.cumsum(axis=1) - ended)
        return tables

    # -- tokens ----------------------------------------------------------------------------

    @cached_property
    def _shards(self) -> Shards:
        """The tokens of all splits, made where this content has not been tokenised yet."""
        given = self._given_tokenizer
        made_by = {"tokens": self.tokens, "vocab_size": self.vocab_size}
        key = fingerprint(
            {
                "version": SHARDS_VERSION,
                "documents": [self._content, self.separator],
                "tokenizer": [given.fingerprint, given.eos_id] if given else made_by,
            }
        )
        return kept_shards(cache_folder("documents") / key[:32], self._tokenise)

    @cached_property
    def _files(self) -> list[Path]:
        return document_files(self.path)

    @cached_property
    def _content(self) -> str:
        return content_of(self._files)

    def _documents(self) -> Iterator[tuple[str, str]]:
        """(where it stands, text) of every document."""
        return itertools.chain.from_iterable(documents(f, self.separator) for f in self._files)

    def _tokenise(self, directory: Path) -> None:
        """Writes tokenizer and shards into an empty directory."""
        tokenizer = self._given_tokenizer or self._made_tokenizer()
        tokenizer.save(directory)
        end = tokenizer.roles["eos"]
        with ShardWriter(directory, SPLITS, tokenizer.vocab_size) as writer:
            for number, chunk in enumerate(_chunks(self._documents(), CHUNK), start=1):
                for (_, text), ids in zip(chunk, _tokens(tokenizer, chunk), strict=True):
                    writer.add(split_of(text), [*ids, end])
                if number % REPORTED == 0:
                    logger.info("%s: %d tokens so far.", self.path, writer.num_tokens)
        logger.info("%s: %d tokens, kept in %s.", self.path, writer.num_tokens, directory.name)

    @cached_property
    def _given_tokenizer(self) -> Tokenizer | None:
        """That of `tokenizer_from`. Raises TokenizerError where it has no end for a document."""
        if self.tokenizer_from is None:
            return None
        given = Tokenizer.load(self.tokenizer_from)
        if given.eos_id is None:
            raise TokenizerError(
                f"{self.tokenizer_from} declares no end-of-sequence token, and a document has to"
                " end.",
                fix="name an eos_token in its tokenizer_config.json.",
            )
        return given

    def _made_tokenizer(self) -> Tokenizer:
        """As `tokens` says. Characters that only other splits than train hold are unknown."""
        taught = (text for _, text in self._documents() if split_of(text) == "train")
        if self.tokens == "byte":
            return Tokenizer.byte(roles={"eos": "<eos>"})
        if self.tokens == "bpe":
            return Tokenizer.train_bpe(taught, self.vocab_size, roles={"eos": "<eos>"})
        characters: set[str] = set()
        for text in taught:
            characters.update(text)
        if not characters:
            raise DataError(f"{self.path}: the train split is empty.", fix="give more documents.")
        return Tokenizer.character(sorted(characters), roles={"eos": "<eos>", "unk": "<unk>"})


def _chunks(found: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """The documents in their order, together some `size` characters at a time."""
    chunk: list[tuple[str, str]] = []
    length = 0
    for where, text in found:
        chunk.append((where, text))
        length += len(text)
        if length >= size:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _tokens(tokenizer: Tokenizer, chunk: Sequence[tuple[str, str]]) -> list[list[int]]:
    """The ids of each document. Raises DataError that names the one that cannot be spelled."""
    try:
        return tokenizer.encode_batch([text for _, text in chunk])
    except PromptError:
        for where, text in chunk:
            try:
                tokenizer.encode(text)
            except PromptError as error:
                raise DataError(f"{where}: {error.problem}", fix=error.fix) from None
        raise
