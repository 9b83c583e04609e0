"""The cascade at work: each prompt goes through as many stages as the rule says, and no more.

    prompt -> stage 1 -> beliefs -> stop, or a later stage -> ... -> the answer believed in most

A batch is run stage by stage: all prompts that need a stage are answered together, then each
decides for itself. Every stage answers the prompt anew, in its own lane of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwell.cascade.features import FEATURES, batch_features
from stepwell.cascade.fitted import Fitted
from stepwell.cascade.ladder import LadderConfig, fitted_directory
from stepwell.cascade.paths import FloatArray, IntArray
from stepwell.cascade.stage import LocalStage, Stage
from stepwell.cascade.stopping import Policy, Verdict
from stepwell.errors import CascadeError, ConfigError
from stepwell.generate.request import Completion
from stepwell.generate.text import Progress

SelectedOn = Literal["none", "prompt", "answer"]


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

    selected_on: what the decision to return this answer had read ("answer": the answers themselves;
    "none": nothing but the ladder). certified: whether a certificate covers the policy.
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


@dataclass(slots=True)
class _Journey:
    """A prompt on its way: what was run so far (as bits), what came of it, whose answer is best."""

    state: int = 0
    returned: int = 0
    completions: dict[int, Completion] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)


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
                "What was fitted for this ladder was fitted for other weights.",
                fix="fit the ladder again.",
            )
        self.config, self.stages, self.fitted = config, tuple(stages), fitted

    @classmethod
    def load(cls, path: str | Path) -> Cascade:
        """The cascade that a ladder file describes, with its models and what was fitted for it."""
        config = LadderConfig.read(path)
        fitted = Fitted.load(fitted_directory(path))
        root = Path(path).parent
        stages = [
            LocalStage.load(stage.name, root / stage.model, max_rows=config.serving.max_rows)
            for stage in config.stages
        ]
        return cls(config, stages, fitted)

    def generate(self, prompt: str, *, lam: float | None = None, **sampling: Any) -> Answer:
        """The answer to one prompt."""
        return self.generate_batch([prompt], lam=lam, **sampling)[0]

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        lam: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """The answers to many prompts, in order. Each prompt's path is its own."""
        policy = self.policy(lam)
        asked = {**self.config.sampling, **sampling}
        features = np.full((len(prompts), len(self.stages), len(FEATURES)), np.nan)
        journeys = [_Journey() for _ in prompts]
        answers: list[Answer | None] = [None] * len(prompts)
        going = self._depart(policy, np.arange(len(prompts)))
        for number, stage in enumerate(self.stages, start=1):
            rows = np.sort(going.pop(number, np.empty(0, dtype=np.int64)))
            if not len(rows):
                continue
            told = None if progress is None else _Told(progress, answers)
            completions = stage.answer([prompts[row] for row in rows], progress=told, **asked)
            self._arrive(number, rows, completions, journeys, features)
            for row in self._decide(policy, number, rows, journeys, features, going):
                answers[row] = self._answer(journeys[row])
        return [answer for answer in answers if answer is not None]

    def policy(self, lam: float | None = None) -> Policy:
        """The stopping rule at a price; the ladder file's own where none is given."""
        if lam is None:
            lam = self.fitted.lam
        if not lam >= 0:
            raise ConfigError(f"lambda is {lam}, expected 0 or more.")
        return self.fitted.policy(lam, self.config)

    def _depart(self, policy: Policy, rows: IntArray) -> dict[int, IntArray]:
        """Where prompts go of which only the text is known."""
        beliefs = self.fitted.predictor.base
        decision = policy.decide(0, list(beliefs))
        return {decision.stage: rows}

    def _arrive(
        self,
        number: int,
        rows: IntArray,
        completions: Sequence[Completion],
        journeys: Sequence[_Journey],
        features: FloatArray,
    ) -> None:
        """Note a stage's answers and what they look like."""
        agrees = np.full(len(rows), np.nan)
        for place, (row, done) in enumerate(zip(rows, completions, strict=True)):
            journey = journeys[row]
            if journey.state:
                agrees[place] = journey.completions[journey.state.bit_length()].text == done.text
            journey.completions[number] = done
            journey.state |= 1 << (number - 1)
        features[rows, number - 1] = batch_features([done.logprobs for done in completions], agrees)

    def _decide(
        self,
        policy: Policy,
        number: int,
        rows: IntArray,
        journeys: Sequence[_Journey],
        features: FloatArray,
        going: dict[int, IntArray],
    ) -> IntArray:
        """Send prompts on from a stage; returns those that stop."""
        beliefs = self.fitted.predictor.beliefs(features[rows, :number], number)
        states = np.array([journeys[row].state for row in rows])
        stopped = []
        for state in np.unique(states):
            here = states == state
            verdict = policy.decide_batch(int(state), beliefs[here])
            for place, row in enumerate(rows[here]):
                self._note(policy, number, journeys[row], verdict, place)
            stopped.append(rows[here][~verdict.going])
            for stage in np.unique(verdict.stage[verdict.going]):
                sent = rows[here][verdict.going & (verdict.stage == stage)]
                going[int(stage)] = np.concatenate([going.get(int(stage), sent[:0]), sent])
        return np.concatenate(stopped)

    def _note(
        self, policy: Policy, number: int, journey: _Journey, verdict: Verdict, place: int
    ) -> None:
        """Write a stage's part into the trace, and whose answer is now believed in most."""
        before = (journey.state & ~(1 << (number - 1))).bit_length()
        journey.visits.append(
            Visit(
                stage=self.stages[number - 1].name,
                answer=journey.completions[number].text,
                cost=policy.costs[before][number - 1],
                p_good=float(verdict.kept[place]),
                advantage=float(verdict.advantage[place]),
            )
        )
        journey.returned = int(verdict.best[place])

    def _answer(self, journey: _Journey) -> Answer:
        completion = journey.completions[journey.returned]
        return Answer(
            text=completion.text,
            stage=self.stages[journey.returned - 1].name,
            cost=sum(visit.cost for visit in journey.visits),
            p_good=journey.visits[-1].p_good,
            mode=self.config.policy.mode,
            selected_on="answer",
            certified=False,
            trace=tuple(journey.visits),
            completion=completion,
        )


class _Told:
    """Passes a stage's progress on; a prompt is finished when the cascade has answered it."""

    def __init__(self, progress: Progress, answers: Sequence[Answer | None]) -> None:
        self._progress, self._answers = progress, answers

    def update(self, finished: int, tokens: int) -> None:  # noqa: ARG002 (the stage's own count)
        answered = sum(answer is not None for answer in self._answers)
        self._progress.update(answered, tokens)
