"""Replacing the files of a directory together: all of them change, or none does.

Owns the order of renames and what is done where one was cut off. Knows nothing of what the files
hold; whoever writes them flushes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".saving"  # in the directory while a save is under way
_LEAVING = "leaving"  # old files on their way out
_REPLACED = "replaced"  # all the old files


@contextmanager
def staged(directory: Path, *, marker: str, belongs: Callable[[str], bool]) -> Iterator[Path]:
    """An empty directory to write into; when the block ends well, its files become `directory`'s.

    They replace every file whose name `belongs`; all others stay. Where anything raises, nothing
    has changed. A new directory is a single rename. Otherwise `marker`, one of the files, leaves
    first and comes last: whoever finds the directory without it knows that a save was killed
    between two renames, and the next save first puts the old files back. One process at a time may
    save into a directory.
    """
    present = directory.is_dir()
    stage = directory / UNFINISHED if present else directory.with_name(f".{directory.name}.saving")
    _clear(stage, directory, marker, belongs)
    stage.mkdir(parents=True)
    try:
        yield stage
        if present:
            _exchange(stage, directory, marker, belongs)
        else:
            stage.rename(directory)
    finally:
        _clear(stage, directory, marker, belongs)


def _exchange(stage: Path, directory: Path, marker: str, belongs: Callable[[str], bool]) -> None:
    new = {path.name for path in stage.iterdir()}
    old = {path.name for path in directory.iterdir() if belongs(path.name)}
    leaving = stage / _LEAVING
    leaving.mkdir()
    for name in _marker_first(old, marker):
        (directory / name).replace(leaving / name)
    leaving.rename(stage / _REPLACED)
    for name in reversed(_marker_first(new, marker)):
        (stage / name).replace(directory / name)


def _clear(stage: Path, directory: Path, marker: str, belongs: Callable[[str], bool]) -> None:
    """Remove the stage; if an exchange was cut off, put the old files back before.

    Safe to be cut off itself: what it finds then is one of the states it started from.
    """
    leaving, replaced = stage / _LEAVING, stage / _REPLACED
    if not (directory / marker).exists():
        if replaced.is_dir():
            for path in [path for path in directory.iterdir() if belongs(path.name)]:
                path.unlink()
            replaced.rename(leaving)
        for name in reversed(_marker_first({path.name for path in leaving.glob("*")}, marker)):
            (leaving / name).replace(directory / name)
    shutil.rmtree(stage, ignore_errors=True)


def _marker_first(names: set[str], marker: str) -> list[str]:
    return sorted(names, key=lambda name: (name != marker, name))
