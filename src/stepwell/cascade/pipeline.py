"""The cascade at work: each prompt goes through as many stages as the rule says, and no more.

    prompt -> stage -> beliefs -> stop, or a later stage, which verifies -> ... -> the best answer

A batch is run stage by stage: all prompts that need a stage are answered together, then each
decides for itself. A later stage verifies what the one before wrote, and samples in a lane of its
own: what it says is what it says when asked alone, whatever the decision to ask it has read. A
stage that fails is gone around, and a deadline ends the walk with what is there.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stepwell.cascade.answer import Answer, SelectedOn
from stepwell.cascade.costs import UnitCosts
from stepwell.cascade.fitted import Fitted, Rule
from stepwell.cascade.fitted_files import FIT_AGAIN
from stepwell.cascade.guard import Guard, Outcome
from stepwell.cascade.kv import KVManager
from stepwell.cascade.ladder import LadderConfig, check_sampling, fitted_directory
from stepwell.cascade.rule.stopping import Policy
from stepwell.cascade.stage import Draft, Reply, Stage
from stepwell.cascade.stages.load import close_stages, load_stages
from stepwell.cascade.walk import Journey, Walk
from stepwell.errors import CascadeError, ConfigError, PromptError
from stepwell.generate.batch import Progress
from stepwell.generate.noise import Address, Purpose, lane_of, uniform
from stepwell.generate.request import Completion, Usage


class Cascade:
    """A ladder of stages with a fitted stopping rule.

    `lam` is the price of a failure relative to the ladder's own rate of exchange: 1 balances the
    two extremes, less is faster, more is better. counters: answers by the stage returned, by why
    they stopped, and faults by stage and kind.
    """

    def __init__(
        self,
        config: LadderConfig,
        stages: Sequence[Stage],
        fitted: Fitted,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        prints = tuple(stage.fingerprint for stage in stages)
        if len(set(prints)) < len(prints):
            raise CascadeError(
                "Two stages of the ladder have the same weights.",
                fix="give every stage a model of its own.",
            )
        if prints != fitted.fingerprints:
            raise CascadeError(
                "What was fitted for this ladder was fitted for other weights.", fix=FIT_AGAIN
            )
        self.config, self.stages, self.fitted = config, tuple(stages), fitted
        self.units, self.gates = UnitCosts.of(fitted.costs, config), fitted.gates(config)
        self.kv = KVManager(stages, config.serving.kv_cache_bytes)
        self.counters: Counter[tuple[str, str]] = Counter()
        self._guards = [Guard(stage, clock=clock) for stage in stages]
        self._names = [stage.name for stage in stages]
        self._vocabularies = [stage.vocabulary for stage in stages]
        self._lane = lane_of(hashlib.sha256("".join(prints).encode()).hexdigest())
        self._clock = clock

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Cascade:
        """The cascade that a ladder file describes, with its models and what was fitted for it.

        `options` are those of TextGenerator.load, such as device. Servers that the file launches
        are started; `close`, or leaving a `with` block, stops them.
        """
        config = LadderConfig.read(path)
        fitted = Fitted.load(fitted_directory(path))
        stages = load_stages(config, Path(path).parent, **options)
        try:
            return cls(config, stages, fitted)
        except BaseException:
            close_stages(stages)
            raise

    def close(self) -> None:
        """Let go of the stages; servers that were launched for them end."""
        self.kv.clear()
        close_stages(self.stages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self,
        prompt: str,
        *,
        lam: float | None = None,
        deadline_s: float | None = None,
        **sampling: Any,
    ) -> Answer:
        """The answer to one prompt; keyword arguments are fields of SamplingParams."""
        return self.generate_batch([prompt], lam=lam, deadline_s=deadline_s, **sampling)[0]

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        lam: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """The answers to many prompts, in order. Each prompt's path is its own.

        deadline_s: seconds after which each prompt has its answer, from the stages that gave one;
        the ladder file's where it is not given. Raises PromptError where there is no prompt,
        ConfigError for a lambda that is no price and for sampling parameters that no stage knows.
        """
        if isinstance(prompts, str) or not prompts:
            raise PromptError("A batch is a list of at least one prompt.", fix="use [prompt].")
        rule = self.rule(lam)
        policies = self._drawn(rule, prompts, int(sampling.get("seed", 0)))
        journeys = [Journey(*pair) for pair in zip(prompts, policies, strict=True)]
        return self._run(journeys, rule, deadline_s, progress, sampling)

    def resume(
        self,
        answers: Sequence[Answer],
        *,
        lam: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Go on from answers where they stopped, at another price, with the same sampling.

        Stages that answered are not asked again; those that failed may be.
        """
        rule = self.rule(lam)
        journeys = []
        for answer in answers:
            if answer.journey is None:
                raise CascadeError("The answer does not say where to go on.", fix="ask anew.")
            old = answer.journey
            [policy] = self._drawn(rule, [old.prompt], int(sampling.get("seed", 0)))
            kept = replace(old, policy=policy, replies=dict(old.replies), tried=set(old.replies))
            kept.visits = [replace(visit) for visit in old.visits if visit.fault is None]
            journeys.append(kept)
        return self._run(journeys, rule, deadline_s, progress, sampling)

    def rule(self, lam: float | None = None) -> Rule:
        """The stopping rule at a price; the ladder file's own where none is given."""
        if lam is not None and not 0 <= lam < math.inf:
            raise ConfigError(f"lambda is {lam}, expected a finite number from 0.")
        return self.fitted.rule(self.config, lam)

    def policy(self, lam: float | None = None) -> Policy:
        """The policy of that rule; of two that are mixed, the dearer one."""
        return self.rule(lam).dearer

    def policies(
        self, prompts: Sequence[str], lam: float | None = None, seed: int = 0
    ) -> list[Policy]:
        """The policy that serves each prompt: where a rule mixes two, drawn by the prompt."""
        return self._drawn(self.rule(lam), prompts, seed)

    def _drawn(self, rule: Rule, prompts: Sequence[str], seed: int) -> list[Policy]:
        if rule.share >= 1.0:
            return [rule.dearer] * len(prompts)
        addresses = [
            Address(seed, self._lane, choice=0, position=_number(prompt), purpose=Purpose.POLICY)
            for prompt in prompts
        ]
        drawn = uniform(addresses, 1)[:, 0]
        return [rule.dearer if u < rule.share else rule.cheaper for u in drawn.tolist()]

    def _run(
        self,
        journeys: list[Journey],
        rule: Rule,
        deadline_s: float | None,
        progress: Progress | None,
        sampling: dict[str, Any],
    ) -> list[Answer]:
        asked = {**self.config.sampling, **sampling}
        check_sampling(asked)
        limit = self.config.serving.deadline_s if deadline_s is None else deadline_s
        end = None if limit is None else self._clock() + limit
        cached = self.kv.cached([journey.prompt for journey in journeys])
        walk = Walk(
            journeys,
            self.fitted.predictor,
            self._names,
            self._vocabularies,
            self.units,
            self.gates,
            cached,
        )
        told = None if progress is None else _Told(progress)
        walk.begin()
        while number := walk.lowest():
            if end is not None and self._clock() >= end:
                walk.stop("deadline")
                break
            self._step(walk, number, end, told, asked)
            if told is not None:
                told.stage_is_done(sum(each.stopped is not None for each in journeys))
        return [self._answer(journey, rule) for journey in journeys]

    def _step(
        self,
        walk: Walk,
        number: int,
        end: float | None,
        told: _Told | None,
        asked: dict[str, Any],
    ) -> None:
        """Ask a stage for all prompts that wait for it, those with a draft to verify apart."""
        guard = self._guards[number - 1]
        plain: list[int] = []
        drafted: dict[int, Draft] = {}
        for row in walk.waiting(number):
            draft = walk.draft(row, number)
            if draft is None:
                plain.append(row)
            else:
                drafted[row] = draft
        for rows, drafts in ((plain, None), (list(drafted), list(drafted.values()))):
            if not rows:
                continue
            prompts = [walk.journeys[row].prompt for row in rows]
            begun = time.perf_counter()
            outcomes = guard.ask(
                prompts,
                drafts,
                self._limit(walk, rows, number, end),
                observe=self.fitted.predictor.feature_set.observe.at(number),
                progress=told,
                **asked,
            )
            self._count(guard, outcomes, prompts, number)
            walk.arrive(number, rows, outcomes, time.perf_counter() - begun)
        if not guard.is_up:
            walk.close(number)

    def _limit(
        self, walk: Walk, rows: Sequence[int], number: int, end: float | None
    ) -> float | None:
        """Seconds that a stage is given: all that are left where every prompt has an answer.

        Elsewhere a share of them, so that there is time for another stage if this one fails.
        """
        own = self.config.stages[number - 1].timeout_s
        if end is None:
            return own
        left = max(0.0, end - self._clock())
        if not all(walk.journeys[row].replies for row in rows):
            left /= len(self.stages)
        return left if own is None else min(own, left)

    def _count(
        self, guard: Guard, outcomes: Sequence[Outcome], prompts: Sequence[str], number: int
    ) -> None:
        """Keep what the stage has read, and note what failed."""
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            if isinstance(outcome, Reply):
                self.kv.keep(number, prompt, outcome.completion)
            else:
                self.counters[guard.stage.name, outcome.fault] += 1

    def _answer(self, journey: Journey, rule: Rule) -> Answer:
        completion = _NO_ANSWER
        if journey.returned:
            completion = journey.replies[journey.returned].completion
        elif journey.visits:
            completion = replace(_NO_ANSWER, error=journey.visits[-1].problem)
        stage = self._names[journey.returned - 1] if journey.returned else ""
        stopped = journey.stopped or "failed"
        self.counters["answers", stage or "none"] += 1
        self.counters["stopped", stopped] += 1
        return Answer(
            text=completion.text,
            stage=stage,
            cost=sum(visit.cost for visit in journey.visits),
            p_good=journey.p_good,
            mode=self.config.policy.mode,
            selected_on=self._selected_on(journey),
            certified=rule.certified,
            stopped=stopped,
            trace=tuple(journey.visits),
            completion=completion,
            journey=journey,
        )

    def _selected_on(self, journey: Journey) -> SelectedOn:
        """What the choice of the answer has read; see Answer."""
        if len(journey.replies) > 1 or journey.last < len(self.stages):
            return "answer"
        if len(journey.visits) > 1:
            return "draft"
        return "prompt" if self.fitted.predictor.feature_set.prompt_names else "none"


_NO_ANSWER = Completion("", (), "error", Usage(0, 0), error="no stage was asked.")


def _number(prompt: str) -> int:
    """31 bits of a prompt, which decide where its noise lies."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") >> 1


class _Told:
    """Passes a stage's progress on; a prompt is finished when the cascade has answered it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._answered = self._before = self._tokens = 0

    def update(self, finished: int, tokens: int) -> None:  # noqa: ARG002 (the stage's own count)
        self._tokens = self._before + tokens
        self._progress.update(self._answered, self._tokens)

    def stage_is_done(self, answered: int) -> None:
        """So many prompts of the batch are answered now; a later stage counts from 0 again."""
        self._answered, self._before = answered, self._tokens
        self._progress.update(answered, self._tokens)
