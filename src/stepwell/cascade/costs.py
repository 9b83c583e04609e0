"""What an answer of each stage costs: seconds measured, FLOPs counted, prices as the file says.

A small model is dear at batch 1, where starting its operations takes longer than running them, and
cheap in a full batch; so a cost in seconds always names its batch size. An answer that verifies a
draft takes fewer seconds, the more of the draft stays; a prompt that a cache holds takes fewer too.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from stepwell.cascade.beliefs.overlap import accepted_shares
from stepwell.cascade.collect import check_finished
from stepwell.cascade.documents import from_document, to_document
from stepwell.cascade.ladder import LadderConfig, Price
from stepwell.cascade.rule.paths import FloatArray
from stepwell.cascade.stage import Draft, Observe, Reply, Stage
from stepwell.config import read_json, write_json
from stepwell.errors import CascadeError, StageError
from stepwell.generate.request import Completion, Usage

REPETITIONS = 5  # of everything that is timed, at least
MOST_REPETITIONS = 20  # where all of that together takes less than ENOUGH_S
ENOUGH_S = 3.0
MOST_ALIKE = 0.75  # share of an answer that others begin with too
CALIBRATE = "run `stepwell cascade calibrate`, or set serving.max_rows to one of them."


@dataclass(frozen=True)
class StageCost:
    """Mean cost of one answer of a stage. Seconds are by batch size.

    seconds: answered from the start. verified: from a draft that stays whole; refused: from one of
    which nothing stays, which is dearer than none. prompt_tokens: mean length of the prompts; flops
    and price are means over the same answers.
    """

    name: str
    flops: float
    seconds: dict[str, float]
    verified: dict[str, float] = field(default_factory=dict)
    refused: dict[str, float] = field(default_factory=dict)
    price: float = 0.0
    prompt_tokens: float = 0.0
    prompt_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """The costs of all stages, smallest stage first."""

    stages: tuple[StageCost, ...]

    KIND: ClassVar[str] = "stage costs"
    VERSION: ClassVar[int] = 1

    def seconds(self, batch: int) -> FloatArray:
        """Seconds an answer at a batch size, [K]. Raises CascadeError where none was measured."""
        return self._at(batch, [stage.seconds for stage in self.stages])

    def verified(self, batch: int) -> FloatArray:
        """Seconds an answer from a draft that stays whole, [K]."""
        return self._at(batch, [stage.verified or stage.seconds for stage in self.stages])

    def refused(self, batch: int) -> FloatArray:
        """Seconds an answer from a draft of which nothing stays, [K]."""
        return self._at(batch, [stage.refused or stage.seconds for stage in self.stages])

    def saved(self, batch: int) -> FloatArray:
        """Seconds that a draft saves which stays whole, [K]: never less than 0."""
        return (self.seconds(batch) - self.verified(batch)).clip(min=0.0)

    def prompt_seconds(self, batch: int) -> FloatArray:
        """Seconds that each token of a prompt takes to be read, [K]; 0 where not measured."""
        return np.array([stage.prompt_seconds.get(str(batch), 0.0) for stage in self.stages])

    def flops(self) -> FloatArray:
        """Floating-point operations an answer, [K]."""
        return np.array([stage.flops for stage in self.stages])

    def prices(self) -> FloatArray:
        """Price an answer, [K]."""
        return np.array([stage.price for stage in self.stages])

    def save(self, path: str | Path) -> None:
        """Write the costs as JSON."""
        write_json(path, to_document(self, self.KIND, self.VERSION))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The costs that `save` wrote.

        Raises ConfigError where it is no JSON, FormatError where it is newer, else DataError.
        """
        return from_document(cls, read_json(path), cls.KIND, cls.VERSION)

    def _at(self, batch: int, by_size: Sequence[Mapping[str, float]]) -> FloatArray:
        try:
            return np.array([seconds[str(batch)] for seconds in by_size])
        except KeyError:
            measured = ", ".join(self.stages[0].seconds)
            raise CascadeError(
                f"Costs were measured at batch sizes {measured}, not {batch}.", fix=CALIBRATE
            ) from None


@dataclass(frozen=True)
class UnitCosts:
    """Costs in units of the largest stage's mean answer, by the measure that a ladder file names.

    anew: [K], an answer from the start. verified, refused: [K], from a draft that stays whole, and
    from one of which nothing does. prompt: [K], how much less for each prompt token that is in the
    stage's cache.
    """

    anew: FloatArray
    verified: FloatArray
    refused: FloatArray
    prompt: FloatArray

    @classmethod
    def of(cls, costs: Costs, config: LadderConfig) -> UnitCosts:
        """The costs that the rule of a ladder weighs."""
        nothing = np.zeros(len(costs.stages))
        if config.costs != "measured":
            counted = costs.flops() if config.costs == "flops" else costs.prices()
            if not counted.min() > 0:
                name = costs.stages[int(counted.argmin())].name
                raise CascadeError(
                    f"Stage {name!r} costs nothing by `costs: {config.costs}`.",
                    fix="say its `price:` or its `parameters:`, or use `costs: measured`.",
                )
            relative = counted / counted[-1]
            return cls(relative, relative, relative, nothing)
        batch = config.serving.max_rows
        unit = costs.seconds(batch)[-1]
        anew = costs.seconds(batch) / unit
        prompt = costs.prompt_seconds(batch) / unit
        if config.policy.mode == "anew":
            return cls(anew, anew, anew, prompt)
        return cls(anew, costs.verified(batch) / unit, costs.refused(batch) / unit, prompt)

    def from_draft(self, accepted: FloatArray) -> FloatArray:
        """Costs [..., K] of verifying drafts of which these shares [..., K] stay."""
        return self.refused - accepted * (self.refused - self.verified)

    def gates(self, accepted: FloatArray, sure: FloatArray, weights: FloatArray) -> FloatArray:
        """How sure a stage k must have been of its answer that stage n verifies it, [K, K].

        At [k-1, n-1], the least at which drafting costs less in the mean over N prompts than doing
        without; infinite where it never does. accepted [N, K, K] are shares that stay, sure [N, K]
        is each stage's confidence in its answer.
        """
        num_stages = len(self.anew)
        found = np.full((num_stages, num_stages), np.inf)
        gained = self.anew - self.from_draft(accepted)
        for before in range(num_stages):
            order = np.argsort(-sure[:, before], kind="stable")
            for after in range(before + 1, num_stages):
                sums = np.cumsum((weights * gained[:, before, after])[order])
                best = int(np.argmax(sums)) if len(sums) else 0
                if len(sums) and sums[best] > 0:
                    found[before, after] = sure[order[best], before]
        return found

    def steps(self, accepted: FloatArray, sure: FloatArray, gates: FloatArray) -> FloatArray:
        """Incremental costs [N, K, K]: [i, k, n-1] is that of stage n after stage k, 0 for none.

        accepted, sure and gates are as in `gates`.
        """
        num_prompts, num_stages = sure.shape
        steps = np.broadcast_to(self.anew, (num_prompts, num_stages, num_stages)).copy()
        drafted = sure[:, :, None] >= gates
        verified = np.where(drafted, self.from_draft(accepted), self.anew)
        steps[:, 1:] = verified[:, :-1]
        return np.triu(steps)

    def warm(self, steps: FloatArray, cached: FloatArray) -> FloatArray:
        """Costs [K, K] of a prompt of which each stage has so many tokens [K] in its cache."""
        return np.triu((steps - cached * self.prompt).clip(min=0.0))


def measure_costs(
    stages: Sequence[Stage],
    prompts: Sequence[str],
    *,
    batches: Sequence[int] = (64, 1),
    observe: Observe = Observe(),  # noqa: B008  # it is a tuple
    prices: Sequence[Price | None] = (),
    sampling: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """The median cost of an answer to these prompts; stages take turns, so that all drift alike.

    Each is timed from the start, and verifying its own answer; what stages are asked to observe is
    part of it. FLOPs are the mean over the largest batch. Raises CascadeError where there are fewer
    prompts than that.
    """
    sizes = sorted(set(batches), reverse=True)
    if not sizes or not 1 <= sizes[-1] <= sizes[0] <= len(prompts):
        raise CascadeError(
            f"{len(prompts)} prompts cannot be timed in batches of {sizes}.",
            fix="give at least as many prompts as the largest batch (serving.max_rows) holds.",
        )
    turns: dict[tuple[str, int], list[_Turn]] = {}
    numbered = list(enumerate(stages, start=1))
    for _ in _rounds(clock):
        for (number, stage), size in itertools.product(numbered, sizes):
            asked = {"observe": observe.at(number), **(sampling or {})}
            turn = _timed(stage, prompts[:size], asked, clock)
            turns.setdefault((stage.name, size), []).append(turn)
    priced = prices or [None] * len(stages)
    return Costs(
        tuple(
            _cost(stage, {size: turns[stage.name, size] for size in sizes}, price)
            for stage, price in zip(stages, priced, strict=True)
        )
    )


def _rounds(clock: Callable[[], float]) -> Iterator[None]:
    """One that warms up, then so many that the medians of short answers are steady too."""
    yield
    start = clock()
    for done in range(MOST_REPETITIONS):
        if done >= REPETITIONS and clock() - start >= ENOUGH_S:
            return
        yield


def price_of(usage: Usage, price: Price) -> float:
    """What the tokens of an answer cost."""
    return (usage.prompt_tokens * price.prompt + usage.completion_tokens * price.completion) / 1e6


@dataclass(frozen=True)
class _Turn:
    """One batch of a stage, seconds an answer: from the start, from drafts, and warm.

    replies are those from the start; cached, mean tokens of a prompt that were found when warm.
    """

    replies: Sequence[Reply]
    anew: float
    verified: float
    refused: float
    warm: float
    cached: float


def _timed(
    stage: Stage, prompts: Sequence[str], asked: Mapping[str, Any], clock: Callable[[], float]
) -> _Turn:
    """One turn. Prompts are new to the stage, but for the last time that they are asked."""

    def timed(answer: Callable[[], list[Reply]]) -> tuple[list[Reply], float]:
        start = clock()
        replies = answer()
        return replies, (clock() - start) / len(prompts)

    stage.forget()
    replies, anew = timed(lambda: stage.generate(prompts, **asked))
    check_finished(stage, replies)
    drafts = [
        Draft(each.completion.text, each.completion.token_ids, stage.vocabulary) for each in replies
    ]
    stage.forget()
    _, verified = timed(lambda: stage.verify(prompts, drafts, **asked))
    stage.forget()
    others = [*drafts[1:], *drafts[:1]]  # mostly wrong: each is the answer to the next prompt
    _, mistaken = timed(lambda: stage.verify(prompts, others, **asked))
    again, warm = timed(lambda: stage.generate(prompts, **asked))
    cached = statistics.fmean(reply.completion.usage.cached_tokens for reply in again)
    stays = float(accepted_shares(replies, [*replies[1:], *replies[:1]], same_ids=True).mean())
    # Seconds fall evenly with what stays; where nearly all does, a refusal cannot be measured.
    refused = (mistaken - stays * verified) / (1.0 - stays) if stays < MOST_ALIKE else anew
    return _Turn(replies, anew, verified, refused, warm, cached)


def _flops(stage: Stage, completions: Sequence[Completion]) -> float:
    """Mean FLOPs an answer; 0 for a stage that cannot tell, which `costs: flops` then refuses."""
    try:
        return statistics.fmean(map(stage.flops, completions))
    except StageError:
        return 0.0


def _cost(stage: Stage, turns: Mapping[int, Sequence[_Turn]], price: Price | None) -> StageCost:
    """Medians over all turns but the first, which warms up; counts from the largest batch."""
    counted = [reply.completion for reply in turns[max(turns)][0].replies]

    def medians(value: Callable[[_Turn], float]) -> dict[str, float]:
        return {str(size): statistics.median(map(value, each[1:])) for size, each in turns.items()}

    return StageCost(
        stage.name,
        flops=_flops(stage, counted),
        seconds=medians(lambda turn: turn.anew),
        verified=medians(lambda turn: turn.verified),
        refused=medians(lambda turn: turn.refused),
        price=0.0 if price is None else statistics.fmean(price_of(c.usage, price) for c in counted),
        prompt_tokens=statistics.fmean(each.usage.prompt_tokens for each in counted),
        prompt_seconds=medians(
            lambda turn: max(0.0, turn.anew - turn.warm) / turn.cached if turn.cached else 0.0
        ),
    )
