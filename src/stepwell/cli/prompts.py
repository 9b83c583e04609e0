"""Prompts from a file: a line of JSON each, {"prompt": "...", "id": ...}, or a template's fields.

Owns the form of the file, the flags of templates, and what is wrong with a line. Whether a model
can answer it is asked here too, so that the fault is found before the work begins, with its line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from stepwell.errors import DataError, PromptError, UsageError

if TYPE_CHECKING:
    from stepwell.generate.text import TextGenerator
    from stepwell.text.prompt_template import PromptTemplate

EXPECTED: Final = 'write lines like {"prompt": "..."}.'


@dataclass(frozen=True)
class Prompt:
    """A prompt, the id that its line gave, and where it stands: "prompts.jsonl, line 3"."""

    text: str
    id: str | int | None
    where: str


@Parameter(name="*")
@dataclass(frozen=True)
class TemplateFlags:
    """What turns rows into prompts."""

    template: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """Prompt templates in YAML; each row of --input fills one of them."""
    template_name: Annotated[str | None, Parameter(metavar="NAME")] = None
    """Which of them; not needed where the file has one."""

    def chosen(self, model: str) -> PromptTemplate | None:
        """The template in the words for the model, None where none is asked for."""
        if self.template is None:
            if self.template_name is not None:
                raise UsageError("--template-name needs --template.", fix="give the file too.")
            return None
        from stepwell.text.prompt_template import PromptTemplates

        return PromptTemplates.load(self.template).get(self.template_name or "", model)


def read_prompts(path: Path, template: PromptTemplate | None = None) -> list[Prompt]:
    """The prompts of a file, a line of JSON each; blank lines are passed over.

    template: what the rows fill; without one each has its prompt. Raises DataError or PromptError
    that names file and line.
    """
    lines = numbered_lines(path, fix="give --input a file of prompts.")
    if not lines:
        raise DataError(f"{path} holds no prompt.", fix=EXPECTED)
    return [_parse(line, where, template) for where, line in lines.items()]


def numbered_lines(path: Path, *, fix: str) -> dict[str, str]:
    """The lines of a file that are not blank, each under its place: "FILE, line 3".

    Raises DataError where the file cannot be read or is no UTF-8; `fix` is what to do.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}.", fix=fix) from None
    places = {f"{path}, line {number}": line for number, line in enumerate(lines, start=1)}
    return {where: line for where, line in places.items() if line.strip()}


def _parse(line: str, where: str, template: PromptTemplate | None) -> Prompt:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{where}: not valid JSON.", fix=EXPECTED) from None
    text = _text(row, where) if template is None else _rendered(row, where, template)
    known = row.get("id")
    if not isinstance(known, str | int | None):
        raise DataError(f'{where}: "id" is {known!r}, expected a text or a whole number.')
    return Prompt(text, known, where)


def _text(row: Any, where: str) -> str:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        found = f"the keys {', '.join(row) or 'none'}" if isinstance(row, dict) else "no object"
        raise DataError(f'{where}: expected a text under "prompt", found {found}.', fix=EXPECTED)
    return prompt


def _rendered(row: Any, where: str, template: PromptTemplate) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, with the fields of the template.")
    try:
        return template.render(row)
    except PromptError as error:
        raise PromptError(f"{where}: {error.problem}", fix=error.fix) from None


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
