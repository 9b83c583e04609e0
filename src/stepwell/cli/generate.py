"""`stepwell generate`: answers to a prompt, as a whole or as they come, or to a file of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter
from rich.text import Text

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags, finite
from stepwell.cli.flags import given_values, model_flags, with_flags
from stepwell.cli.interventions import InsideFlags
from stepwell.cli.prompts import TemplateFlags
from stepwell.errors import UsageError
from stepwell.generate.request import SAMPLING_PRESETS, SamplingParams

if TYPE_CHECKING:
    from stepwell.generate.request import Completion
    from stepwell.generate.speculative import DraftSource
    from stepwell.generate.text import TextGenerator

SAMPLING: Final = Group(
    "Sampling", "What is not given is as the model's generation_config.json says.", sort_key=20
)
FILE_GROUP: Final = Group("Many prompts", sort_key=10)
FLAGS: Final = model_flags(SamplingParams, SAMPLING, names={"n": ("-n", "--n")})


@Parameter(name="*", group=FILE_GROUP)
@dataclass(frozen=True)
class FileFlags:
    """Many prompts: where they are, where the answers go, and what answers them."""

    source: Annotated[Path | None, Parameter(name="--input", metavar="FILE")] = None
    """A file with a line {"prompt": "..."} for each prompt; an "id" is handed on."""
    templates: TemplateFlags = TemplateFlags()  # noqa: RUF009  # it is frozen
    target: Annotated[Path | None, Parameter(name="--output", metavar="FILE")] = None
    """Where the answers go, a line each, in the same order. The same command goes on."""
    fresh: Annotated[bool, Parameter(negative=())] = False
    """Remove the answers that are in --output, and begin anew."""
    devices: str | None = None
    """Devices that share the prompts, a process each: cuda:0,cuda:1 or cpu,cpu."""


def _generate(
    model: str,
    prompt: str | None = None,
    /,
    *,
    preset: Annotated[str | None, Parameter(choices=tuple(SAMPLING_PRESETS))] = None,
    stream: Annotated[bool, Parameter(negative=())] = False,
    echo: Annotated[bool, Parameter(negative=())] = False,
    draft: str | None = None,
    files: FileFlags = FileFlags(),  # it is frozen
    inside: InsideFlags = InsideFlags(),  # noqa: B008
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008
    output: OutputFlags = OutputFlags(),  # noqa: B008
    **given: Any,
) -> int:
    """Answer a prompt, or every prompt of a file.

        stepwell generate runs/facts "zpqk>" --temperature 0
        stepwell generate runs/story "Once" -n 4 --temperature 0.8 --top-p 0.95 --seed 7
        stepwell generate runs/story "Once" --stream
        stepwell generate runs/facts-large "zpqk>" --draft runs/facts-small
        stepwell generate runs/facts --input prompts.jsonl --output answers.jsonl
        stepwell generate runs/facts --input keys.jsonl --template ask.yaml --output values.jsonl
        stepwell generate runs/facts "zpqk>" --interventions '[{"zero_heads": {"0": [1]}}]'

    Parameters
    ----------
    model
        A run folder, a model directory, or a name on the Hugging Face Hub.
    prompt
        The text to go on from.
    preset
        Named sampling parameters; flags change them.
    stream
        Print the answer as it comes.
    echo
        Print the prompt before the answer.
    draft
        A smaller model with the same tokenizer, or the word lookup (the text so far): it proposes
        tokens that the model verifies, for the same answer in less time.
    """
    sampling = {**preset_values(preset), **given_values(FLAGS, given)}
    _check_combination(prompt, files, stream=stream, echo=echo, record=bool(inside.record))
    with output.open() as opened:
        interventions = inside.parsed
        if prompt is None:
            from stepwell.cli.answers import answer_prompts

            return answer_prompts(
                model, (files.source, files.target), sampling, compute, opened,
                fresh=files.fresh, template=files.templates.chosen(model),
                devices=_devices(files.devices, draft), draft=_draft_source(draft, compute),
                interventions=interventions,
            )  # fmt: skip
        generator = compute.load(model)
        params = generator.defaults.changed(**sampling)
        source = _draft_source(draft, compute)
        question = Question(generator, model, prompt, params, echo, source, inside)
        return stream_answer(question, opened) if stream else print_answers(question, opened)


generate: Callable[..., int] = with_flags(_generate, FLAGS)


@dataclass(frozen=True)
class Question:
    """One prompt, and what answers it how. `model` is its name; `echo`: the prompt comes first.

    draft: what proposes tokens. inside: what is changed and kept on the way.
    """

    generator: TextGenerator
    model: str
    prompt: str
    params: SamplingParams
    echo: bool
    draft: DraftSource | None = None
    inside: InsideFlags = InsideFlags()  # noqa: RUF009  # it is frozen

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the generator's verbs."""
        own = {"echo": self.echo, "draft": self.draft, **dict(self.params)}
        return {**own, "interventions": self.inside.parsed, "record": self.inside.spec}


def print_answers(question: Question, output: Output) -> int:
    """Prints all answers when they are finished; the exit code."""
    begun = time.perf_counter()
    [answers] = question.generator.generate_batch([question.prompt], **question.options)
    seconds = time.perf_counter() - begun
    plain = {
        "model": question.model,
        "prompt": question.prompt,
        "sampling": question.params.plain(),
        "answers": [answer.plain() for answer in answers],
    }
    question.inside.keep(answers, output)
    output.result(plain, _view(answers))
    return _conclude(answers, seconds, output)


def stream_answer(question: Question, output: Output) -> int:
    """Prints the answer as it comes: text, or a line of JSON for each piece; the exit code."""
    if question.params.n > 1 and not output.json:
        raise UsageError(
            f"--stream shows one answer, n is {question.params.n}.",
            fix="leave out -n, or add --json.",
        )
    begun = time.perf_counter()
    answers: list[Completion] = []
    if question.echo and not output.json:
        output.write(question.prompt)
    streamed = {**question.options, "echo": False}
    for piece in question.generator.generate_stream(question.prompt, **streamed):
        if piece.completion is not None:
            answers.append(piece.completion)
        if not output.json:
            output.write(piece.text)
            continue
        line: dict[str, Any] = {"choice": piece.choice, "text": piece.text}
        if piece.completion is not None:
            line["answer"] = piece.completion.plain()
        output.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
    if not output.json:
        output.write("\n")
    question.inside.keep(answers, output)
    return _conclude(answers, time.perf_counter() - begun, output)


def _draft_source(name: str | None, compute: ComputeFlags) -> DraftSource | None:
    """What --draft names: a model, loaded where the other one is, or the text so far."""
    if name is None:
        return None
    if name == "lookup":
        return "lookup"
    from stepwell.model.weights import load_model

    return load_model(name, device=compute.device, dtype=compute.dtype)


def _devices(given: str | None, draft: str | None) -> list[str]:
    """The devices that --devices names."""
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    if names and draft not in (None, "lookup"):
        raise UsageError(
            "--devices starts processes that cannot share a draft model.",
            fix="leave out one of the two, or use --draft lookup.",
        )
    return names


def preset_values(name: str | None) -> dict[str, Any]:
    """The parameters that a preset sets, by name."""
    if name is None:
        return {}
    preset = SAMPLING_PRESETS[name]
    return {field: getattr(preset, field) for field in preset.model_fields_set}


def _check_combination(prompt: str | None, files: FileFlags, **for_one: bool) -> None:
    """Nothing; raises UsageError for flags that do not belong together."""
    if (prompt is None) == (files.source is None):
        raise UsageError(
            "generate needs either a prompt or --input.",
            fix="quote the prompt; --input takes a file of them.",
        )
    if (files.source is None) != (files.target is None):
        raise UsageError("--input and --output belong together.", fix="give both or neither.")
    if files.source is None and files.devices is not None:
        raise UsageError("--devices needs --input.", fix="--device takes one device.")
    for_files = {"fresh": files.fresh, "template": files.templates != TemplateFlags()}
    for name, is_given in for_files.items():
        if files.source is None and is_given:
            raise UsageError(f"--{name} needs --input.", fix=f"leave out --{name}.")
    for name, is_given in for_one.items():
        if files.source is not None and is_given:
            raise UsageError(
                f"--{name} is for one prompt, not for --input.", fix=f"leave out --{name}."
            )


def _view(answers: Sequence[Completion]) -> str | Text:
    """The texts; where there are several, each under its number."""
    if len(answers) == 1:
        return answers[0].text
    view = Text()
    for number, answer in enumerate(answers, start=1):
        view.append(f"answer {number}\n", style="dim")
        view.append(answer.text + ("\n" if number < len(answers) else ""))
    return view


def _conclude(answers: Sequence[Completion], seconds: float, output: Output) -> int:
    """Says how much came in which time, and whether an answer failed; the exit code."""
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    ends = ", ".join(sorted({answer.finish_reason for answer in answers}))
    speed = tokens / max(seconds, 1e-9)
    output.note(f"{tokens} tokens in {seconds:.2f} s, {speed:.0f} a second; {ends}", style="dim")
    failed = sum(answer.finish_reason == "error" for answer in answers)
    if failed:
        output.warn(f"{failed} of {len(answers)} answers ended because a logit was not finite.")
    return 1 if failed else 0
