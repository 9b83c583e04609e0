"""The cascade at work: each prompt goes through as many stages as the rule says, and no more.

    prompt -> stage 1 -> beliefs -> stop, or a later stage -> ... -> the answer believed in most

A batch is run stage by stage: all prompts that need a stage are answered together, then each
decides for itself. Every stage answers the prompt anew, in its own lane of noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwell.cascade.collect import agreement
from stepwell.cascade.features import FEATURES, batch_features
from stepwell.cascade.fitted import FIT_AGAIN, Fitted
from stepwell.cascade.ladder import LadderConfig, check_sampling, fitted_directory
from stepwell.cascade.paths import BoolArray, IntArray
from stepwell.cascade.predictor import Predictor
from stepwell.cascade.stage import Stage, load_stages
from stepwell.cascade.stopping import Policy, Verdict
from stepwell.errors import CascadeError, ConfigError, PromptError
from stepwell.generate.batch import Progress
from stepwell.generate.request import Completion

SelectedOn = Literal["none", "answer"]


@dataclass(frozen=True, slots=True)
class Visit:
    """One stage's part in an answer.

    cost is incremental, in units of the mean full answer of the largest stage. p_good is the
    belief, right after this stage, in the best answer at hand; advantage what going on was then
    believed to save, in the same unit as the cost, failures priced in.
    """

    stage: str
    answer: str
    cost: float
    p_good: float
    advantage: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cascade returns for one prompt.

    selected_on: what the decision to return this answer had read: "answer", the answers themselves,
    or "none", where the last stage was asked at once. certified: whether a certificate covers the
    policy. An answer that every stage failed to finish has p_good 0.
    """

    text: str
    stage: str
    cost: float
    p_good: float
    mode: str
    selected_on: SelectedOn
    certified: bool
    trace: tuple[Visit, ...]
    completion: Completion


class Cascade:
    """A ladder of stages with a fitted stopping rule.

    `lam` is the price of a failure relative to the ladder's own rate of exchange: 1 balances the
    two extremes, less is faster, more is better.
    """

    def __init__(self, config: LadderConfig, stages: Sequence[Stage], fitted: Fitted) -> None:
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

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Cascade:
        """The cascade that a ladder file describes, with its models and what was fitted for it.

        `options` are those of TextGenerator.load, such as device.
        """
        config = LadderConfig.read(path)
        fitted = Fitted.load(fitted_directory(path))
        return cls(config, load_stages(config, Path(path).parent, **options), fitted)

    def generate(self, prompt: str, *, lam: float | None = None, **sampling: Any) -> Answer:
        """The answer to one prompt; keyword arguments are fields of SamplingParams."""
        return self.generate_batch([prompt], lam=lam, **sampling)[0]

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        lam: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """The answers to many prompts, in order. Each prompt's path is its own.

        Raises PromptError where there is no prompt, ConfigError for a lambda that is no price and
        for sampling parameters that no stage knows.
        """
        if isinstance(prompts, str) or not prompts:
            raise PromptError("A batch is a list of at least one prompt.", fix="use [prompt].")
        asked = {**self.config.sampling, **sampling}
        check_sampling(asked)
        walk = _Walk(self.policy(lam), self.fitted.predictor, len(prompts))
        told = None if progress is None else _Told(progress)
        for number, stage in enumerate(self.stages, start=1):
            rows = walk.waiting(number)
            if len(rows):
                texts = [prompts[row] for row in rows]
                walk.arrive(number, rows, stage.answer(texts, progress=told, **asked))
            if told is not None:
                told.stage_is_done(sum(journey.stopped for journey in walk.journeys))
        return [self._answer(journey, walk.policy) for journey in walk.journeys]

    def policy(self, lam: float | None = None) -> Policy:
        """The stopping rule at a price; the ladder file's own where none is given."""
        if lam is None:
            lam = self.fitted.lambda_for(self.config)
        if not 0 <= lam < math.inf:
            raise ConfigError(f"lambda is {lam}, expected a finite number from 0.")
        return self.fitted.policy(lam, self.config)

    def _answer(self, journey: _Journey, policy: Policy) -> Answer:
        completion = journey.completions[journey.returned]
        visits = self._visits(journey, policy)
        read_nothing = list(journey.completions) == [len(self.stages)]
        return Answer(
            text=completion.text,
            stage=self.stages[journey.returned - 1].name,
            cost=sum(visit.cost for visit in visits),
            p_good=visits[-1].p_good,
            mode=self.config.policy.mode,
            selected_on="none" if read_nothing else "answer",
            certified=False,
            trace=visits,
            completion=completion,
        )

    def _visits(self, journey: _Journey, policy: Policy) -> tuple[Visit, ...]:
        """The stages that a prompt went through, with what each cost after the one before."""
        numbers = list(journey.completions)
        return tuple(
            Visit(
                stage=self.stages[number - 1].name,
                answer=journey.completions[number].text,
                cost=policy.costs[before][number - 1],
                p_good=journey.kept[place],
                advantage=journey.advantages[place],
            )
            for place, (before, number) in enumerate(zip([0, *numbers[:-1]], numbers, strict=True))
        )


@dataclass(slots=True)
class _Journey:
    """A prompt on its way.

    completions: of the stages run, by number, in order; kept and advantages: what each of them left
    the prompt with. returned: the stage whose answer is believed in most.
    """

    completions: dict[int, Completion] = field(default_factory=dict)
    kept: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    returned: int = 0
    stopped: bool = False

    @property
    def state(self) -> int:
        """The stages run, as bits."""
        return sum(1 << (number - 1) for number in self.completions)


class _Walk:
    """The prompts of one batch on their way through the stages."""

    def __init__(self, policy: Policy, predictor: Predictor, num_prompts: int) -> None:
        self.policy, self.predictor = policy, predictor
        self.journeys = [_Journey() for _ in range(num_prompts)]
        self._features = np.full((num_prompts, policy.num_stages, len(FEATURES)), np.nan)
        self._failed = np.zeros((num_prompts, policy.num_stages), dtype=np.bool_)
        # Nothing is known of a prompt before its first answer: all take the same first step.
        first = policy.decide(0, predictor.base).stage
        self._next = np.full(num_prompts, first)

    def waiting(self, number: int) -> IntArray:
        """The prompts that need a stage."""
        return np.flatnonzero(self._next == number)

    def arrive(self, number: int, rows: IntArray, completions: Sequence[Completion]) -> None:
        """Takes a stage's answers to some prompts; each stops, or waits for a later stage."""
        journeys = [self.journeys[row] for row in rows]
        before = [journey.completions.get(number - 1) for journey in journeys]
        for journey, done in zip(journeys, completions, strict=True):
            journey.completions[number] = done
        self._features[rows, number - 1] = batch_features(
            [done.logprobs for done in completions], agreement(before, completions)
        )
        self._failed[rows, number - 1] = [done.finish_reason == "error" for done in completions]
        beliefs = self.predictor.beliefs(self._features[rows, :number], number)
        beliefs[self._failed[rows]] = 0.0
        states = np.array([journey.state for journey in journeys])
        for state in np.unique(states):
            here = states == state
            self._go_on(rows[here], self.policy.decide_batch(int(state), beliefs[here]))

    def _go_on(self, rows: IntArray, verdict: Verdict) -> None:
        """Notes what was decided for prompts that ran the same stages."""
        going = verdict.going | self._nothing_at_hand(rows, verdict)
        self._next[rows] = np.where(going, verdict.stage, 0)
        for place, row in enumerate(rows):
            journey = self.journeys[row]
            journey.kept.append(float(verdict.kept[place]))
            journey.advantages.append(float(verdict.advantage[place]))
            journey.returned = int(verdict.best[place])
            journey.stopped = not going[place]

    def _nothing_at_hand(self, rows: IntArray, verdict: Verdict) -> BoolArray:
        """Whether there is no finished answer yet, but a stage that may give one."""
        failed = self._failed[rows, verdict.best - 1]
        possible: BoolArray = failed & (verdict.stage > verdict.best)
        return possible


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
