"""A file of answers that grows, and is there as a whole only when it is whole.

    answers.jsonl       {"id": ..., "prompt": "...", "answers": [...], "request": "9f3c..."}  a line
                        each, in the order of the prompts
    answers.jsonl.part  until all are there: first what was asked, then the answers so far

Owns these two forms and when what is there may be gone on with. Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell.cli.console import finite
from stepwell.cli.prompts import Prompt
from stepwell.config import fingerprint, write_atomically
from stepwell.errors import DataError, FormatError, UsageError

if TYPE_CHECKING:
    from stepwell.generate.request import Completion

FORMAT_VERSION: Final = 1


class AnswerFile:
    """The answers to one request: a part that grows, and then the whole in its place.

    request: all that shapes the answers, as plain values; "model" is only a name.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.request = {"format_version": FORMAT_VERSION, **request}
        self._deciding = {key: self.request[key] for key in self.request.keys() - {"model"}}
        self.fingerprint = fingerprint(self._deciding)[:16]

    def remove(self) -> None:
        """Removes what is there."""
        self.path.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Whether the whole is there. Raises UsageError where it answers another request."""
        if not self.path.exists():
            return False
        try:
            with self.path.open(encoding="utf-8") as file:
                known = json.loads(file.readline())["request"]
        except (ValueError, KeyError, TypeError):
            known = None
        if known != self.fingerprint:
            raise UsageError(
                f"{self.path} holds other answers: another model, other sampling or other prompts.",
                fix="give another --output, or --fresh to remove it.",
            )
        return True

    def begin(self) -> list[str]:
        """The lines answered so far; makes the part where there is none.

        A line that a kill has torn is cut off. Raises UsageError where the part answers another
        request, FormatError where a newer version wrote it.
        """
        if not self.part.exists():
            self.part.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.part, json.dumps(self.request) + "\n")
            return []
        content = self.part.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.part, len(whole))
        header, *lines = whole.decode().splitlines() or [""]
        self._check(header)
        return lines

    def _check(self, header: str) -> None:
        try:
            known = json.loads(header)
            version = known["format_version"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.part} is damaged.", fix="begin anew with --fresh.") from None
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{self.part} has format_version {version}, this reads up to {FORMAT_VERSION}.",
                fix="update stepwell, or begin anew with --fresh.",
            )
        changed = [
            key for key in self.request if key != "model" and known.get(key) != self.request[key]
        ]
        if changed:
            raise UsageError(
                f"{self.part} holds answers to another request: {', '.join(changed)} changed.",
                fix="give another --output, or begin anew with --fresh.",
            )

    def append(self, lines: Sequence[str]) -> None:
        """Adds lines to the part; they are on the disk when this returns."""
        with self.part.open("ab") as file:
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def line(self, prompt: Prompt, answers: Sequence[Completion]) -> str:
        """The answers to a prompt as a line of the file."""
        row = {
            **({} if prompt.id is None else {"id": prompt.id}),
            "prompt": prompt.text,
            "answers": [answer.plain() for answer in answers],
            "request": self.fingerprint,
        }
        return json.dumps(finite(row), ensure_ascii=False)

    def finish(self, lines: Sequence[str]) -> None:
        """Puts the whole in the place of the part."""
        write_atomically(self.path, "\n".join(lines) + "\n")
        self.part.unlink()
