"""Tokens on disk: streams of ids in files that are mapped into memory, sealed by hashes.

    DIRECTORY/
      train-00000.tokens ...   ids, little-endian, 2 or 4 bytes each; all but the last are full
      shards.json              the width of an id, and how long each stream is
      manifest.json            SHA-256 of each file, the last

Owns the format. What the streams are, and where the directory lies, is told from above.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Self

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from stepwell.config import Config, read_json, write_json
from stepwell.errors import ConfigError, DataError
from stepwell.storage.sealed import MANIFEST, commit, disk
from stepwell.storage.verified import check_files

INDEX: Final = "shards.json"
SHARD_TOKENS: Final = 2**27  # 256 MiB of two-byte ids
NARROW: Final = "<u2"
WIDE: Final = "<u4"

logger = logging.getLogger(__name__)


class Stream(Config):
    """How long a stream is."""

    tokens: int = 0
    documents: int = 0


class Index(Config):
    """What shards.json says."""

    dtype: str
    shard_tokens: int
    streams: dict[str, Stream]


class ShardWriter:
    """Writes streams of documents into an empty directory; when it is left, the index as well."""

    def __init__(
        self,
        directory: Path,
        streams: Sequence[str],
        vocab_size: int,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._directory, self._shard_tokens = directory, shard_tokens
        self._dtype = NARROW if vocab_size <= 2**16 else WIDE
        self.streams = {name: Stream() for name in streams}
        self._files: dict[str, BinaryIO] = {}

    def add(self, stream: str, ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Appends a document, its end included; it may lie in several shards."""
        known = self.streams[stream]
        data, begin = np.asarray(ids, dtype=self._dtype), known.tokens
        while len(data):
            number, filled = divmod(begin, self._shard_tokens)
            part, data = np.split(data, [self._shard_tokens - filled])
            self._file(stream, number, is_new=filled == 0).write(part.tobytes())
            begin += len(part)
        self.streams[stream] = Stream(tokens=begin, documents=known.documents + 1)

    @property
    def num_tokens(self) -> int:
        """How many tokens have been written."""
        return sum(stream.tokens for stream in self.streams.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for file in self._files.values():
            _finish(file)
        if kind is None:
            index = Index(dtype=self._dtype, shard_tokens=self._shard_tokens, streams=self.streams)
            write_json(self._directory / INDEX, index.plain())

    def _file(self, stream: str, number: int, *, is_new: bool) -> BinaryIO:
        """The shard that is being written."""
        if is_new:
            if stream in self._files:
                _finish(self._files[stream])
            self._files[stream] = _shard(self._directory, stream, number).open("wb")
        return self._files[stream]


@dataclass(frozen=True)
class Shards:
    """Streams that were written, and are read where they lie: only the pages that are asked for."""

    directory: Path
    index: Index
    _mapped: dict[tuple[str, int], NDArray[np.uint32]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """What a sealed directory holds.

        Raises DataError where it is not there, or a file of it is missing or damaged. Whether one
        is damaged is remembered: it is read as a whole only after it has changed.
        """
        if not (directory / MANIFEST).is_file():
            raise DataError(f"{directory} holds no finished shards.", fix="tokenise anew.")
        check_files(directory, lambda _: True, DataError)
        try:
            index = Index.parse(read_json(directory / INDEX), where=str(directory / INDEX))
        except ConfigError as error:
            raise DataError(error.problem, fix="tokenise anew.") from None
        return cls(directory, index)

    def read(self, stream: str, begin: int, count: int) -> NDArray[np.int64]:
        """`count` ids of a stream from `begin` on, int64; the stream must be long enough."""
        size, parts = self.index.shard_tokens, []
        while count:
            number, first = divmod(begin, size)
            part = self._shard(stream, number)[first : first + count]
            parts.append(part.astype(np.int64))
            begin, count = begin + len(part), count - len(part)
        return np.concatenate(parts)

    def _shard(self, stream: str, number: int) -> NDArray[np.uint32]:
        """One shard, mapped when it is first asked for."""
        if (stream, number) not in self._mapped:
            path = _shard(self.directory, stream, number)
            try:
                self._mapped[stream, number] = np.memmap(path, dtype=self.index.dtype, mode="r")
            except OSError as error:
                fix = "start again: it is made again."
                raise DataError(f"{path}: {error.strerror}.", fix=fix) from None
        return self._mapped[stream, number]


def kept_shards(directory: Path, fill: Callable[[Path], None]) -> Shards:
    """The shards in a directory; where they are not there, or damaged, `fill` writes them first.

    Of several processes that ask at once, one writes and the others wait for it. One that is killed
    leaves nothing that counts. Raises CheckpointError where the disk refuses.
    """
    with disk(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f"{directory.name}.lock")):
            try:
                return Shards.open(directory)
            except DataError as fault:
                if directory.exists():
                    logger.warning("%s It is made again.", fault.problem)
            commit(directory, fill)
            return Shards.open(directory)


def _finish(file: BinaryIO) -> None:
    """Ends a file that is to outlast a power cut."""
    with file:
        file.flush()
        os.fsync(file.fileno())


def _shard(directory: Path, stream: str, number: int) -> Path:
    return directory / f"{stream}-{number:05}.tokens"
