"""`stepwell cascade run`: answers to prompts by a ladder of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags, finite
from stepwell.cli.faults import one_line
from stepwell.cli.flags import given_values, model_flags, with_flags
from stepwell.cli.progress import GenerationProgress
from stepwell.cli.prompts import Prompt, check_prompts, read_prompts
from stepwell.config import write_atomically
from stepwell.device import set_threads
from stepwell.errors import PromptError, UsageError
from stepwell.generate.request import SamplingParams

if TYPE_CHECKING:
    from stepwell.cascade.answer import Answer, Visit
    from stepwell.cascade.pipeline import Cascade

SAMPLING: Final = Group("Sampling", "What is not given is as the ladder file says.", sort_key=20)
SHOWN: Final = 40
"""Characters of a prompt that an error quotes."""
FLAGS: Final = model_flags(SamplingParams, SAMPLING, without=("n", "logprobs"), show_defaults=False)


def _run(
    ladder: Path,
    prompts: tuple[str, ...] = (),
    /,
    *,
    lam: Annotated[float | None, Parameter(name="--lambda")] = None,
    deadline_s: Annotated[float | None, Parameter(metavar="S")] = None,
    trace: Annotated[bool, Parameter(negative=())] = False,
    input_file: Annotated[Path | None, Parameter(name="--input")] = None,
    output_file: Annotated[Path | None, Parameter(name="--output")] = None,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
    **given: Any,
) -> int:
    """Answer prompts with a ladder of models, each prompt only as deep as it needs.

        stepwell cascade run runs/demo/ladder.yaml 'zpqk>' --lambda 10
        stepwell cascade run runs/demo/ladder.yaml --input prompts.jsonl --output answers.jsonl

    Parameters
    ----------
    ladder
        A ladder file, such as the one that `stepwell demo` writes.
    prompts
        The texts to go on from.
    lam
        The price of a failure; the ladder's own where it is not given. 1 balances always the
        smallest stage and always the largest, less is faster, more is better.
    deadline_s
        Seconds after which every prompt has its answer, from the stages that gave one.
    trace
        Show each stage that was asked: what it said, what that cost, what was believed then.
    input_file
        A file with a line {"prompt": "..."} for each prompt; an "id" is handed on.
    output_file
        Where the answers go, a line each, in the same order.
    """
    with output.open() as opened:
        asked = [Prompt(text, None, f"prompt {text[:SHOWN]!r}") for text in prompts]
        asked += read_prompts(input_file) if input_file is not None else []
        if not asked:
            raise UsageError("There is no prompt.", fix="give one, or a file with --input.")
        if input_file and output_file and output_file.exists() and output_file.samefile(input_file):
            raise UsageError(f"{output_file} is the input.", fix="give another file to --output.")
        with load_cascade(ladder, compute) as cascade:
            _check(cascade, asked)
            options = {"lam": lam, "deadline_s": deadline_s, **given_values(FLAGS, given)}
            answers = _answer(opened, cascade, asked, options)
        _show(opened, asked, answers, output_file, trace=trace)
        return 1 if _warn(opened, answers) else 0


run: Callable[..., int] = with_flags(_run, FLAGS)


def load_cascade(ladder: Path, compute: ComputeFlags) -> Cascade:
    """The cascade of a ladder file, run as the flags say."""
    from stepwell.cascade.pipeline import Cascade

    if compute.threads:
        set_threads(compute.threads)
    return Cascade.load(
        ladder,
        device=compute.device,
        dtype=compute.dtype,
        weights=compute.weights,
        strict=compute.strict,
    )


def _check(cascade: Cascade, prompts: Sequence[Prompt]) -> None:
    """Nothing; raises PromptError for a prompt that no stage can answer, as far as is known."""
    from stepwell.cascade.stages.local import LocalStage

    local = [stage.generator for stage in cascade.stages if isinstance(stage, LocalStage)]
    if len(local) < len(cascade.stages):
        return
    for prompt in prompts:
        refused: list[PromptError] = []
        for generator in local:
            try:
                check_prompts(generator, [prompt])
            except PromptError as error:
                refused.append(error)
        if len(refused) == len(local):
            raise refused[-1]


def _answer(
    output: Output,
    cascade: Cascade,
    prompts: Sequence[Prompt],
    options: dict[str, Any],
) -> list[Answer]:
    """The answers to all prompts; how far they are is shown where they take a while."""
    texts = [prompt.text for prompt in prompts]
    if len(texts) <= cascade.config.serving.max_rows:
        return cascade.generate_batch(texts, **options)
    with GenerationProgress(output, "answering", len(texts)) as progress:
        return cascade.generate_batch(texts, progress=progress, **options)


def _show(
    output: Output,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    target: Path | None,
    *,
    trace: bool,
) -> None:
    """Prints the answers, or writes them to a file."""
    plain = [_plain(*pair) for pair in zip(prompts, answers, strict=True)]
    if target is None:
        output.result(plain, _view(prompts, answers, trace=trace))
        return
    write_atomically(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain))
    output.result(
        {"output": str(target), "prompts": len(plain)}, f"{len(plain)} prompts answered in {target}"
    )


def _warn(output: Output, answers: Sequence[Answer]) -> int:
    """Say which stages failed, and how many prompts have no answer, which is returned."""
    faults: dict[str, list[str]] = {}
    for answer in answers:
        for visit in answer.trace:
            if visit.fault is not None:
                faults.setdefault(visit.stage, []).append(one_line(visit.problem))
    asked = len(answers)
    for stage, problems in faults.items():
        output.warn(f"stage {stage} failed at {len(problems)} of {asked} prompts: {problems[0]}")
    failed = sum(answer.stopped == "failed" for answer in answers)
    if failed:
        output.warn(f"{failed} of {asked} prompts got no answer.")
    return failed


def _plain(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    """An answer as JSON holds it, without the tokens."""
    known = {} if prompt.id is None else {"id": prompt.id}
    return dict(finite({**known, "prompt": prompt.text, **answer.plain()}))


def _view(prompts: Sequence[Prompt], answers: Sequence[Answer], *, trace: bool) -> Text:
    """Each prompt with its answer, and how deep it went."""
    shown = Text()
    for prompt, answer in zip(prompts, answers, strict=True):
        path = " > ".join(visit.stage for visit in answer.trace)
        shown.append(prompt.text, style="dim")
        shown.append(answer.text or ("(no answer)" * (answer.stopped == "failed")), style="bold")
        shown.append(f"   {path}   believed {answer.p_good:.0%}   cost {answer.cost:.3f}\n", "dim")
        for visit in answer.trace if trace else ():
            shown.append(f"    {_told(visit)}\n", "red" if visit.fault else "dim")
    shown.rstrip()
    return shown


def _told(visit: Visit) -> str:
    """One stage's part in an answer, in a line."""
    if visit.fault is not None:
        return f"{visit.stage}: no answer ({visit.fault}): {one_line(visit.problem)}"
    how = f"{visit.accepted_tokens} of {visit.new_tokens} tokens drafted"
    return (
        f"{visit.stage}: {visit.answer!r}   {how if visit.mode == 'verified' else 'anew'}"
        f"   cost {visit.cost:.3f}   {1e3 * visit.seconds:.1f} ms   best {visit.p_good:.0%}"
        f"   going on saves {visit.advantage:+.3f}"
    )
