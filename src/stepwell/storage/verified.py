"""Files of a sealed directory, held against its manifest before they are read.

Hashing gigabytes takes seconds, so that a large file which was found sound is remembered, in the
user's cache folder, by its size, its times and its place on the disk: it is hashed again where any
of these has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

from stepwell.errors import CheckpointError, ConfigError, StepwellError, suggest
from stepwell.storage.sealed import MANIFEST, read_manifest, sha256
from stepwell.storage.user_cache import cache_folder

Verify = Literal["once", "always"]
"""When a large file is hashed: where it is not remembered as sound, or each time it is opened."""

LARGE: Final = 2**20  # bytes, from which on remembering is quicker than hashing


def check_files(
    directory: Path,
    wanted: Callable[[str], bool],
    error: type[StepwellError],
    verify: Verify = "once",
) -> None:
    """Nothing where every `wanted` file that manifest.json names is as it says.

    A directory without a manifest was made elsewhere and is not checked. Raises `error`, naming the
    file, where one is missing or differs, or where the manifest is damaged.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify is {verify!r}. {suggest(verify, get_args(Verify))}")
    while (directory / MANIFEST).is_file():
        digests = _digests(directory, error)
        wrong = [
            name
            for name, digest in digests.items()
            if wanted(name) and not _is_sound(directory / name, digest, verify)
        ]
        if not wrong:
            return
        if _digests(directory, error) == digests:  # else it was replaced while it was read
            raise _difference(directory / wrong[0], error)


def _is_sound(path: Path, digest: str, verify: Verify) -> bool:
    """Whether a file has this hash, or had it when it was last looked at and is untouched since."""
    try:
        found = path.stat()
        if found.st_size < LARGE:
            return sha256(path) == digest
        place = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        note = cache_folder("verified") / hashlib.sha256(repr((digest, place)).encode()).hexdigest()
        if verify == "once" and note.exists():
            return True
        if sha256(path) != digest:
            return False
    except OSError:
        return False
    with suppress(OSError):  # a home that cannot be written to: it is hashed again next time
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    return True


def _digests(directory: Path, error: type[StepwellError]) -> dict[str, str]:
    """The hash of each file by the manifest, none where there is no manifest (any more)."""
    try:
        files: dict[str, str] = read_manifest(directory)["files"]
    except CheckpointError as fault:
        if not (directory / MANIFEST).is_file():
            return {}
        fix = "save it again; if another program made that file, remove it: nothing is verified."
        raise error(fault.problem, fix=fix) from None
    return files


def _difference(path: Path, error: type[StepwellError]) -> StepwellError:
    if not path.is_file():
        return error(f"{path} is missing; {MANIFEST} names it.", fix="download or save it again.")
    return error(
        f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}.",
        fix=f"download or save it again; if the change is yours, take its name out of {MANIFEST}.",
    )
