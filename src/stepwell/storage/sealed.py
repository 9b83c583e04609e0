"""Directories that are there whole or not at all, sealed by a manifest of hashes.

Owns how one is committed and how it is verified. Knows nothing of what is inside.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stepwell.config import read_json, write_json
from stepwell.errors import CheckpointError, ConfigError, FormatError, WeightsError
from stepwell.storage.staging import staged

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"


def commit(
    directory: Path,
    fill: Callable[[Path], None],
    *,
    belongs: Callable[[str], bool] = lambda name: not name.startswith("."),
    **values: Any,
) -> None:
    """Puts what `fill` writes into `directory`, sealed, in place of the files that `belong` there.

    All of it or nothing: see `staged`. Raises CheckpointError where the disk refuses.
    """
    with disk(directory):
        with staged(directory, marker=MANIFEST, belongs=belongs) as hidden:
            fill(hidden)
            seal(hidden, **values)
        sync(directory)
        sync(directory.parent)


@contextmanager
def disk(target: Path) -> Iterator[None]:
    """Turns what the disk refuses inside of the block into a CheckpointError about `target`."""
    try:
        yield
    except (OSError, WeightsError) as error:
        reason = error.problem if isinstance(error, WeightsError) else f"{error.strerror or error}."
        raise CheckpointError(
            f"{target} could not be written: {reason}",
            fix="make room on the disk or check who may write there; the same command goes on.",
        ) from error


def seal(directory: Path, **values: Any) -> None:
    """Writes the manifest that names the hashes of all files, and flushes the directory.

    Whoever wrote the files has flushed them: a second time would cost as much as the first. Those
    that a manifest of theirs names are not hashed again.
    """
    known = read_manifest(directory)["files"] if (directory / MANIFEST).exists() else {}
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    digests = {path.name: known.get(path.name) or sha256(path) for path in files}
    write_json(directory / MANIFEST, {"format_version": FORMAT_VERSION, **values, "files": digests})
    sync(directory)


@contextmanager
def resealed(directory: Path, names: Collection[str]) -> Iterator[None]:
    """Files of these names are written inside of the block, in a directory that may be sealed.

    The manifest does not name them while they change: where that is cut off, they go unverified.
    """
    if not (directory / MANIFEST).exists():
        yield
        return
    manifest = read_manifest(directory)
    others = {name: each for name, each in manifest["files"].items() if name not in names}
    write_json(directory / MANIFEST, {**manifest, "files": others})
    yield
    written = {name: sha256(directory / name) for name in names if (directory / name).is_file()}
    write_json(directory / MANIFEST, {**manifest, "files": {**others, **written}})


def verify(directory: Path) -> dict[str, Any]:
    """The manifest of a sealed directory, all of whose files are as it says.

    Raises CheckpointError that names the file at fault, FormatError where a newer version wrote it.
    """
    manifest = read_manifest(directory)
    for name, digest in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.", fix="use another checkpoint.")
        if sha256(path) != digest:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}.",
                fix="use another checkpoint.",
            )
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """What manifest.json says. Raises CheckpointError or FormatError."""
    path = directory / MANIFEST
    try:
        manifest = read_json(path)
        version, files = manifest["format_version"], manifest["files"]
        sound = isinstance(version, int) and all(is_plain_name(name) for name in files)
    except (ConfigError, KeyError, TypeError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} is missing or damaged.", fix="use another checkpoint.")
    refuse_newer(version, path)
    return dict(manifest)


def refuse_newer(version: int, path: Path) -> None:
    """Raises FormatError where `path` was written in a newer format than this."""
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path} has format_version {version}, this stepwell reads up to {FORMAT_VERSION}.",
            fix="install a newer stepwell.",
        )


def is_plain_name(name: str) -> bool:
    """Whether a manifest's name stays inside of its directory."""
    return Path(name).name == name


def discard(directory: Path) -> None:
    """Removes a directory; a kill halfway leaves a hidden remnant, not half of it in its place."""
    hidden = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)


def sync(directory: Path) -> None:
    """Flushes the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
