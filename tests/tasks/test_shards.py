"""Tokens on disk: what is read is what was written, from few pages, or nothing at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stepwell.errors import CheckpointError, DataError
from stepwell.tasks.shards import NARROW, WIDE, Shards, ShardWriter, kept_shards


def filling(
    streams: dict[str, list[list[int]]], vocab_size: int = 1000, shard_tokens: int = 8
) -> Callable[[Path], None]:
    """What writes these documents."""

    def fill(directory: Path) -> None:
        with ShardWriter(directory, list(streams), vocab_size, shard_tokens) as writer:
            for stream, documents in streams.items():
                for ids in documents:
                    writer.add(stream, ids)

    return fill


def some(count: int = 40, seed: int = 0, vocab_size: int = 1000) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(vocab_size, size=rng.integers(0, 30)).tolist() for _ in range(count)]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, NARROW), (2**16 + 1, WIDE)])
def test_every_stretch_is_read_as_it_was_written(
    tmp_path: Path, vocab_size: int, dtype: str
) -> None:
    documents = [[0, vocab_size - 1], *some(vocab_size=vocab_size)]
    streams = {"a": documents, "b": some(seed=1), "none": []}
    shards = kept_shards(tmp_path / "kept", filling(streams, vocab_size))
    assert shards.index.dtype == dtype
    for name, written in streams.items():
        whole = [token for ids in written for token in ids]
        stream = shards.index.streams[name]
        assert (stream.tokens, stream.documents) == (len(whole), len(written))
        for begin in range(0, len(whole), 5):
            for count in (1, 7, 8, 9, 40):
                expected = whole[begin : begin + count]
                assert shards.read(name, begin, len(expected)).tolist() == expected


def test_shards_hold_so_many_tokens_and_the_last_the_rest(tmp_path: Path) -> None:
    shards = kept_shards(tmp_path / "kept", filling({"a": [list(range(20))]}))
    sizes = [path.stat().st_size for path in sorted(shards.directory.glob("*.tokens"))]
    assert sizes == [16, 16, 8]


def test_opening_many_shards_and_reading_a_little_takes_little_memory(tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        with ShardWriter(directory, ["a"], 1000, shard_tokens=2**18) as writer:
            for start in range(64):
                writer.add("a", np.full(2**18, start))

    kept_shards(tmp_path / "kept", fill)
    tracemalloc.start()
    shards = Shards.open(tmp_path / "kept")
    sums = [int(shards.read("a", number * 2**18, 100).sum()) for number in range(64)]
    used = tracemalloc.get_traced_memory()[1]
    np.fromfile(tmp_path / "kept" / "a-00000.tokens")
    read_whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sums == [100 * number for number in range(64)]
    assert used < 2**19 <= read_whole, "one shard of 64 takes more, where it is read"


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    first = kept_shards(tmp_path / "kept", filling({"a": [[1, 2]]}))
    again = kept_shards(tmp_path / "kept", filling({"a": [[3, 4]]}))
    assert again.read("a", 0, 2).tolist() == first.read("a", 0, 2).tolist() == [1, 2]


@pytest.mark.parametrize("fault", ["a byte", "a shard", "the index", "the manifest"])
def test_damage_is_named_and_made_good(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill = filling({"a": some()})
    intact = kept_shards(tmp_path / "kept", fill)
    name = {"the index": "shards.json", "the manifest": "manifest.json"}
    path = intact.directory / name.get(fault, "a-00001.tokens")
    before = path.read_bytes()
    if fault == "a byte":
        path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    elif fault == "a shard":
        path.unlink()
    else:
        path.write_text("{}")
    with pytest.raises(DataError, match=path.name):
        Shards.open(intact.directory)
    kept_shards(tmp_path / "kept", fill)
    assert path.read_bytes() == before
    assert path.name in caplog.text


def test_a_shard_that_goes_while_it_is_used_is_named(tmp_path: Path) -> None:
    shards = kept_shards(tmp_path / "kept", filling({"a": some()}))
    (shards.directory / "a-00002.tokens").unlink()
    assert len(shards.read("a", 0, 16)) == 16
    with pytest.raises(DataError, match=r"a-00002.tokens: No such file"):
        shards.read("a", 10, 16)


def test_whatever_raises_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        filling({"a": some()})(directory)
        raise DataError("planted")

    with pytest.raises(DataError, match="planted"):
        kept_shards(tmp_path / "kept", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert kept_shards(tmp_path / "kept", filling({"a": [[5]]})).read("a", 0, 1).tolist() == [5]


def _killed(directory: Path) -> None:
    def die(hidden: Path) -> None:
        filling({"a": some()})(hidden)
        os.kill(os.getpid(), signal.SIGKILL)

    kept_shards(directory, die)


def _counted(directory: Path, notes: Path) -> None:
    def fill(hidden: Path) -> None:
        with notes.open("a") as file:
            file.write("made\n")
        filling({"a": some()})(hidden)

    shards = kept_shards(directory, fill)
    assert shards.index.streams["a"].documents == 40


def run(*processes: multiprocessing.process.BaseProcess) -> list[int | None]:
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_one_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    assert run(spawn.Process(target=_killed, args=(tmp_path / "kept",))) == [-signal.SIGKILL]
    assert list(tmp_path.rglob("*.tokens")), "it was killed before it had written anything"
    assert not (tmp_path / "kept").exists()
    documents = some(seed=3)
    shards = kept_shards(tmp_path / "kept", filling({"a": documents}))
    whole = [token for ids in documents for token in ids]
    assert shards.read("a", 0, len(whole)).tolist() == whole


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    notes = tmp_path / "notes"
    arguments = (tmp_path / "kept", notes)
    assert run(*(spawn.Process(target=_counted, args=arguments) for _ in range(3))) == [0] * 3
    assert notes.read_text() == "made\n"


def test_a_disk_that_refuses_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not be written"):
        kept_shards(tmp_path / "file" / "kept", filling({"a": [[1]]}))
