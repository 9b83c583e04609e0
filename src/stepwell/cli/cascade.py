"""`stepwell cascade`: run prompts through a ladder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.progress import GenerationProgress
from stepwell.config import write_atomically
from stepwell.errors import DataError, UsageError

if TYPE_CHECKING:
    from stepwell.cascade.pipeline import Answer


def run(
    ladder: Path,
    prompts: Annotated[tuple[str, ...], Parameter(help="Prompts to answer.")] = (),
    *,
    lam: Annotated[
        float | None,
        Parameter(name="--lambda", help="Price of a failure; the ladder's own if unset."),
    ] = None,
    input: Annotated[Path | None, Parameter(help='JSONL with a "prompt" on every line.')] = None,
    output_file: Annotated[
        Path | None, Parameter(name="--output", help="Write JSONL here.")
    ] = None,
    output: OutputFlags | None = None,
) -> None:
    """Answer prompts with a ladder, each going only as deep as it needs.

    Examples:
        stepwell cascade run runs/demo/ladder.yaml 'zpqk>' --lambda 10
        stepwell cascade run runs/demo/ladder.yaml --input prompts.jsonl --output answers.jsonl
    """
    with (output or OutputFlags()).open() as opened:
        texts = [*prompts, *(_read_prompts(input) if input else [])]
        if not texts:
            raise UsageError("There is no prompt.", fix="give one, or a file with --input.")
        answers = _answer(opened, ladder, texts, lam)
        plain = [
            {"prompt": text, **_plain(done)} for text, done in zip(texts, answers, strict=True)
        ]
        if output_file is not None:
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in plain]
            write_atomically(output_file, "".join(lines))
            opened.note(f"{len(lines)} answers in {output_file}")
        else:
            opened.result(plain, _view(texts, answers))


def _answer(output: Output, ladder: Path, texts: list[str], lam: float | None) -> list[Answer]:
    from stepwell.cascade.pipeline import Cascade

    cascade = Cascade.load(ladder)
    with GenerationProgress(output, "answering", len(texts)) as progress:
        shown = progress if len(texts) > cascade.config.serving.max_rows else None
        return cascade.generate_batch(texts, lam=lam, progress=shown)


def _read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL file. Raises DataError that names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        raise DataError(f"{path} is missing or not UTF-8 text.", fix="check the path.") from None
    prompts = [
        _prompt_of(line, path, number) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise DataError(f"{path} holds no prompt.", fix='write lines such as {"prompt": "..."}.')
    return prompts


def _prompt_of(line: str, path: Path, number: int) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (json.JSONDecodeError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise DataError(f'{path}, line {number}: expected a line such as {{"prompt": "..."}}.')
    return prompt


def _plain(answer: Answer) -> dict[str, Any]:
    """An answer as JSON holds it, without the tokens."""
    return {key: value for key, value in asdict(answer).items() if key != "completion"}


def _view(texts: list[str], answers: list[Answer]) -> Text:
    """Each prompt with its answer, and how deep it went."""
    shown = Text()
    for text, answer in zip(texts, answers, strict=True):
        path = " > ".join(visit.stage for visit in answer.trace)
        shown.append(text, style="dim")
        shown.append(answer.text, style="bold")
        shown.append(f"   {path}   believed {answer.p_good:.0%}   cost {answer.cost:.3f}\n", "dim")
    shown.rstrip()
    return shown
