"""Prompts from a file: a line of JSON each, {"prompt": "...", "id": ...}.

Owns the form of the file and what is wrong with a line. Whether a model can answer it is asked here
too, so that the fault is found before the work begins, with its line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stepwell.errors import DataError, PromptError

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator

EXPECTED: Final = 'write lines like {"prompt": "..."}.'


@dataclass(frozen=True)
class Prompt:
    """A prompt, the id that its line gave, and where it stands: "prompts.jsonl, line 3"."""

    text: str
    id: str | int | None
    where: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, a line of JSON each; blank lines are passed over.

    Raises DataError that names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8.") from None
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{path}: {reason}.", fix="give --input a file of prompts.") from None
    prompts = [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise DataError(f"{path} holds no prompt.", fix=EXPECTED)
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{where}: not valid JSON.", fix=EXPECTED) from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        found = f"the keys {', '.join(row) or 'none'}" if isinstance(row, dict) else "no object"
        raise DataError(
            f'{where}: expected a text under "prompt", found {found}.',
            fix=EXPECTED,
        )
    if not isinstance(row.get("id"), str | int | None):
        raise DataError(f'{where}: "id" is {row["id"]!r}, expected a text or a whole number.')
    return Prompt(row["prompt"], row.get("id"), where)


def check_prompts(generator: TextGenerator, prompts: Sequence[Prompt]) -> None:
    """Nothing; raises PromptError that names the line which the model cannot answer."""
    context = generator.model.config.context_length
    for prompt in prompts:
        try:
            length = len(generator.tokens(prompt.text))
        except PromptError as error:
            raise PromptError(f"{prompt.where}: {error.problem}", fix=error.fix) from None
        if length >= context:
            raise PromptError(
                f"{prompt.where}: the prompt has {length} tokens, the model's context holds"
                f" {context} and the answer needs one of them.",
                fix="shorten the prompt, or use a model with a longer context.",
            )
