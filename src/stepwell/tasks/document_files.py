"""Documents from text files and JSONL, read as a stream: no file has to fit in memory.

Owns which files a path stands for and what a document is. Knows no tokens and no splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stepwell.config import fingerprint, write_atomically
from stepwell.errors import DataError
from stepwell.storage.sealed import sha256
from stepwell.storage.user_cache import cache_folder
from stepwell.storage.verified import LARGE
from stepwell.tasks.rows import SURROGATE, json_lines

ROWS: Final = ".jsonl"
TEXTS: Final = (".txt", ".md")


def document_files(path: Path) -> list[Path]:
    """The file itself, or all text and JSONL files in a directory and below, in order of names.

    Hidden files are passed over. Raises DataError where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        fix = "give a text file, a .jsonl file, or a directory of them."
        raise DataError(f"{path} does not exist.", fix=fix)
    files = [
        file
        for file in path.rglob("*")
        if file.suffix in (ROWS, *TEXTS)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        kinds = ", ".join((*TEXTS, ROWS))
        raise DataError(f"{path} holds no file of documents.", fix=f"the names end in {kinds}.")
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def content_of(files: list[Path]) -> str:
    """SHA-256 over what the files hold, in their order; their names do not count."""
    try:
        return fingerprint([(file.suffix == ROWS, _sha256(file)) for file in files])
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}.", fix="check the path.") from None


def _sha256(file: Path) -> str:
    """Hash of a file, which for a large one is kept in the user's cache folder, by its size, its
    times and its place on the disk, so that a corpus is not read again whenever it is opened."""
    found = file.stat()
    if found.st_size < LARGE:
        return sha256(file)
    place = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    note = cache_folder("hashed") / fingerprint(place)
    with suppress(OSError):
        return note.read_text(encoding="ascii")
    digest = sha256(file)
    with suppress(OSError):  # a home that cannot be written to: it is hashed again next time
        write_atomically(note, digest)
    return digest


def documents(file: Path, separator: str = "") -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each document of a file; those of white space are passed over.

    A text file is one document, or several with lines that are `separator` between them. A row of
    JSONL is {"text": ...}. Raises DataError that names file and line.
    """
    if file.suffix == ROWS:
        found = _rows(file)
    elif separator:
        found = _separated(file, separator)
    else:
        found = iter([(str(file), "".join(line for _, line in _lines(file)))])
    return ((where, text) for where, text in found if text.strip())


def _separated(file: Path, separator: str) -> Iterator[tuple[str, str]]:
    lines: list[str] = []
    begin = 1
    for number, line in _lines(file):
        if line.rstrip("\r\n") != separator:
            lines.append(line)
            continue
        yield f"{file}, line {begin}", "".join(lines)
        lines, begin = [], number + 1
    yield f"{file}, line {begin}", "".join(lines)


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    return ((where, _text(row, where)) for where, row in json_lines(_lines(file), file))


def _text(row: Any, where: str) -> str:
    """The text of a row. Raises DataError."""
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f'{where}: expected {{"text": "..."}}, found {found}.')
    if SURROGATE.search(text):
        raise DataError(f"{where}: half a surrogate pair.", fix="write the text as UTF-8.")
    return text


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines with their ends, numbered from 1. Raises DataError where a line is not UTF-8."""
    number = 0
    try:
        with file.open("rb") as content:
            for number, line in enumerate(content, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{file}, line {number}: not UTF-8.", fix="convert the file.") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or 'cannot be read'}.") from None
