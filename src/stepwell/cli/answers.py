"""`stepwell generate --input --output`: a file of prompts into a file of answers.

The same command goes on where it was stopped. Owns the order of the work and what makes two
requests the same: weights, tokenizer, sampling and prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell.cli.answer_file import AnswerFile
from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output
from stepwell.cli.progress import GenerationProgress
from stepwell.cli.prompts import Prompt, check_prompts, read_prompts
from stepwell.config import fingerprint
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.generate.request import Completion, SamplingParams
    from stepwell.generate.speculative import DraftSource
    from stepwell.generate.text import TextGenerator
    from stepwell.generate.workers import WorkerPool
    from stepwell.model.interventions import Intervention
    from stepwell.text.prompt_template import PromptTemplate

BATCHES_AHEAD: Final = 4  # handed over at once: rows stay full, and a kill loses little


def answer_prompts(
    model: str,
    files: tuple[Path | None, Path | None],
    sampling: Mapping[str, Any],
    compute: ComputeFlags,
    output: Output,
    *,
    fresh: bool,
    template: PromptTemplate | None = None,
    draft: DraftSource | None = None,
    devices: Sequence[str] = (),
    interventions: Sequence[Intervention] = (),
) -> int:
    """Answers every prompt of the first file into the second; the exit code.

    template: what makes prompts of the rows. draft: what proposes tokens; it does not shape the
    answers, nor do the devices that share them.
    """
    source, target = files
    assert source is not None
    assert target is not None
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target} is the input.", fix="give another file to --output.")
    prompts = read_prompts(source, template)
    generator = compute.load(model)
    params = generator.defaults.changed(**sampling)
    check_prompts(generator, prompts)
    file = AnswerFile(target, request_of(generator, model, params, prompts, interventions))
    if fresh:
        file.remove()
    if file.is_finished():
        output.note(f"{target} holds all {len(prompts)} answers to this request already.")
        failed = 0
    else:
        with _working(generator, compute, model, devices) as worker:
            asked = {**dict(params), "interventions": interventions}
            work = partial(worker.generate_batch, draft=draft, **asked)
            at_once = max(1, BATCHES_AHEAD * worker.num_at_once // params.n)
            failed = _answer_rest(work, at_once, params.n, prompts, file, output)
    plain = {"output": str(target), "prompts": len(prompts), "failed": failed}
    output.result(plain, f"{len(prompts)} prompts answered in {target}")
    if failed:
        output.warn(f"{failed} answers ended because a logit was not finite.")
    return 1 if failed else 0


def request_of(
    generator: TextGenerator,
    model: str,
    params: SamplingParams,
    prompts: Sequence[Prompt],
    interventions: Sequence[Intervention] = (),
) -> dict[str, Any]:
    """All that shapes the answers, as plain values."""
    from stepwell.model.fingerprint import model_fingerprint
    from stepwell.model.interventions import plain_interventions

    changes = plain_interventions(interventions)
    return {
        "model": model,
        "weights": model_fingerprint(generator.model),
        "tokenizer": generator.tokenizer.fingerprint,
        "sampling": params.plain(),
        "prompts": fingerprint([[prompt.id, prompt.text] for prompt in prompts]),
        **({"interventions": changes} if changes else {}),
    }


@contextmanager
def _working(
    generator: TextGenerator, compute: ComputeFlags, model: str, devices: Sequence[str]
) -> Iterator[TextGenerator | WorkerPool]:
    """What answers: the generator, or a process for each device."""
    if devices:
        with compute.pool(model, devices) as pool:
            yield pool
    else:
        yield generator


def _answer_rest(
    work: Callable[..., list[list[Completion]]],
    at_once: int,
    n: int,
    prompts: Sequence[Prompt],
    file: AnswerFile,
    output: Output,
) -> int:
    """Answers the prompts that have none yet; the number of answers that failed, of all."""
    lines = file.begin()
    if lines:
        output.note(f"{len(lines)} of {len(prompts)} prompts are answered already.")
    total = (len(prompts) - len(lines)) * n
    with GenerationProgress(output, file.path.name, total) as progress:
        while len(lines) < len(prompts):
            asked = prompts[len(lines) : len(lines) + at_once]
            answers = work([prompt.text for prompt in asked], progress=progress)
            progress.next_batch()
            new = [file.line(*pair) for pair in zip(asked, answers, strict=True)]
            file.append(new)
            lines += new
    file.finish(lines)
    rows = [json.loads(line) for line in lines]
    return sum(answer["finish_reason"] == "error" for row in rows for answer in row["answers"])
