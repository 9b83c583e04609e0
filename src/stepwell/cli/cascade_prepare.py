"""`stepwell cascade collect`, `calibrate`, `fit`: what a ladder needs before it can decide.

Owns what is said on the way. What is done, and what it leaves beside the ladder file, is in
cascade.prepare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stepwell.cli.compute import ComputeFlags
from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.interrupt import stop_on_interrupt
from stepwell.cli.progress import CountProgress, TrainingProgress
from stepwell.cli.report_table import terminal_table
from stepwell.device import set_threads
from stepwell.report.figure import Column, Table

if TYPE_CHECKING:
    from stepwell.cascade.collect import Collected
    from stepwell.cascade.costs import Costs
    from stepwell.cascade.fitted import Fitted
    from stepwell.cascade.prepare import Preparation
    from stepwell.cascade.rule.certify import Certificate
    from stepwell.train.config import TrainerConfig

NUM_SAMPLES = 4000


def collect(
    ladder: Path,
    /,
    *,
    num_samples: Annotated[int, Parameter(metavar="N")] = NUM_SAMPLES,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008  # it is frozen
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Ask every stage of a ladder every question, and keep what it says.

        stepwell cascade collect runs/demo/ladder.yaml --num-samples 100000

    The same command goes on where it was stopped; with a larger number it asks for more.

    Parameters
    ----------
    ladder
        A ladder file. What is asked is its `questions:`, or the task that its stages learnt.
    num_samples
        How many questions; all facts, where the task is facts.
    """
    with output.open() as opened, prepared(opened, ladder, compute) as preparation:
        collected = collected_for(opened, preparation, num_samples)
        opened.result(
            {"questions": len(collected), "right": _right(preparation, collected)},
            terminal_table(right_table(preparation, collected)),
        )


def calibrate(
    ladder: Path,
    /,
    *,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Measure what an answer of each stage costs on this machine.

        stepwell cascade calibrate runs/demo/ladder.yaml

    Parameters
    ----------
    ladder
        A ladder file. Seconds are measured at its `serving.max_rows` and for a single prompt.
    """
    with output.open() as opened, prepared(opened, ladder, compute) as preparation:
        costs = costs_for(opened, preparation, measured_anew=True)
        opened.result(_plain_costs(costs), terminal_table(costs_table(costs)))


def fit(
    ladder: Path,
    /,
    *,
    num_samples: Annotated[int, Parameter(metavar="N")] = NUM_SAMPLES,
    compute: ComputeFlags = ComputeFlags(),  # noqa: B008
    output: OutputFlags = OutputFlags(),  # noqa: B008
) -> None:
    """Learn when to stop: the predictor, the rule, its certificate, and the lambda to serve at.

        stepwell cascade fit runs/demo/ladder.yaml --num-samples 20000

    Trains, asks and measures first what is not there yet (collect, calibrate).

    Parameters
    ----------
    ladder
        A ladder file; what is fitted lies beside it, in LADDER.fitted.
    num_samples
        How many questions to learn from.
    """
    with output.open() as opened, prepared(opened, ladder, compute) as preparation:
        collected = collected_for(opened, preparation, num_samples)
        costs = costs_for(opened, preparation)
        opened.note("Learning what a right answer looks like, and when to stop ...")
        fitted = preparation.fit(collected, costs)
        for line in what_was_fitted(fitted, preparation):
            opened.note(line)
        opened.result(_plain_fit(fitted, preparation), f"fitted: {preparation.fitted}")


@contextmanager
def prepared(output: Output, ladder: Path, compute: ComputeFlags) -> Iterator[Preparation]:
    """The ladder with its stages, trained where they are not there, closed at the end."""
    from stepwell.cascade.build import build_missing
    from stepwell.cascade.ladder import LadderConfig
    from stepwell.cascade.prepare import Preparation
    from stepwell.cascade.stages.load import close_stages, load_stages

    if compute.threads:
        set_threads(compute.threads)
    config = LadderConfig.read(ladder)
    Preparation(ladder, config, ()).check()
    build_missing(config, ladder.parent, lambda _, run: _train(output, run))
    options: dict[str, Any] = {
        "device": compute.device,
        "dtype": compute.dtype,
        "weights": compute.weights,
        "strict": compute.strict,
    }
    stages = load_stages(config, ladder.parent, **options)
    try:
        yield Preparation(ladder, config, stages)
    finally:
        close_stages(stages)


def _train(output: Output, config: TrainerConfig) -> None:
    """Train one stage; Ctrl-C saves, and the same command goes on."""
    from stepwell.train.trainer import Trainer

    progress = TrainingProgress(output)
    with stop_on_interrupt(lambda: output.warn("saving after this step ...")) as requested:
        Trainer(config).train(progress=progress, stop_requested=requested)


def collected_for(output: Output, preparation: Preparation, count: int) -> Collected:
    """The stages' answers to so many questions, asked where they are not there."""
    questions = preparation.questions(count)
    names = ", ".join(stage.name for stage in preparation.stages)
    output.note(f"Asking {names} {len(questions):,} questions ...")
    with CountProgress(output, "asking", len(questions)) as progress:
        return preparation.collect(questions, progress.update)


def costs_for(output: Output, preparation: Preparation, *, measured_anew: bool = False) -> Costs:
    """What answers cost: as measured before, unless that is not there or not wanted."""
    from stepwell.cascade.prepare import first_prompts

    costs = None if measured_anew else preparation.costs()
    if costs is not None:
        return costs
    rows = preparation.config.serving.max_rows
    output.note(f"Measuring what an answer costs, {rows} at once and alone ...")
    return preparation.calibrate(first_prompts(preparation.questions(rows), rows))


def right_table(preparation: Preparation, collected: Collected) -> Table:
    """How often each stage is right."""
    shares = _right(preparation, collected)
    return Table(("stage", Column("right", percent=True)), list(shares.items()))


def costs_table(costs: Costs) -> Table:
    """What an answer of each stage takes, at each batch size."""
    sizes = list(costs.stages[0].seconds)
    heads = [f"ms, batch {size}" for size in sizes]
    verified = [f"verified, batch {size}" for size in sizes]
    return Table(
        ("stage", *heads, *verified, "MFLOPs"),
        [
            (
                stage.name,
                *(1e3 * stage.seconds[size] for size in sizes),
                *(1e3 * stage.verified[size] for size in sizes),
                stage.flops / 1e6,
            )
            for stage in costs.stages
        ],
        note="Of one answer: from the start, and from a draft that stays whole.",
    )


def what_was_fitted(fitted: Fitted, preparation: Preparation) -> list[str]:
    """What there is to say of a fit, a line each."""
    lam = fitted.lambda_for(preparation.config)
    price = f"{lam:.3g}" if math.isfinite(lam) else "none, it is always the largest stage"
    lines = [f"lambda, the price of a failure: {price}"]
    certificate = fitted.certificate
    if certificate is not None:
        lines.append(certified_in_words(certificate))
    return lines


def certified_in_words(certificate: Certificate) -> str:
    """What a certificate promises, or why it promises nothing."""
    terms = (
        f"excess loss at most {certificate.epsilon:.0%} with probability"
        f" {1 - certificate.delta:.0%}, from {certificate.prompts:,} prompts"
    )
    if certificate.certified:
        return f"certified: {terms}, {certificate.failures} of them failures"
    return f"not certified ({terms} could not be shown)"


def _right(preparation: Preparation, collected: Collected) -> dict[str, float]:
    share = collected.weights / collected.weights.sum()
    right = (share @ collected.good).tolist()
    return dict(zip((stage.name for stage in preparation.stages), right, strict=True))


def _plain_costs(costs: Costs) -> dict[str, Any]:
    return {stage.name: dict(vars(stage)) for stage in costs.stages}


def _plain_fit(fitted: Fitted, preparation: Preparation) -> dict[str, Any]:
    certificate, lam = fitted.certificate, fitted.lambda_for(preparation.config)
    return {
        "fitted": str(preparation.fitted),
        "lambda": lam if math.isfinite(lam) else None,
        "certificate": None if certificate is None else certificate.to_plain(),
    }
