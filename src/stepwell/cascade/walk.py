"""The prompts of one batch on their way through the stages.

Owns what is known of each prompt, what was decided for it and which stage it waits for. Asks no
stage itself: the pipeline brings the outcomes.

A failed stage is no step of the walk: the prompt stands where it stood, without that stage, and
decides again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepwell.cascade.answer import Stopped, Visit
from stepwell.cascade.beliefs.features import Seen
from stepwell.cascade.beliefs.overlap import accepted_shares, confidence
from stepwell.cascade.beliefs.predictor import Predictor
from stepwell.cascade.costs import UnitCosts
from stepwell.cascade.guard import Failure, Outcome
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray
from stepwell.cascade.rule.stopping import Policy, Verdict
from stepwell.cascade.stage import Draft, Reply


@dataclass(slots=True)
class Journey:
    """A prompt on its way.

    replies: of the stages that answered, by number, in the order asked. tried: all that were asked.
    returned: the stage whose answer is believed in most, 0 for none; stopped: why it goes no
    deeper, None while it does.
    """

    prompt: str
    policy: Policy
    replies: dict[int, Reply] = field(default_factory=dict)
    tried: set[int] = field(default_factory=set)
    visits: list[Visit] = field(default_factory=list)
    returned: int = 0
    p_good: float = 0.0
    stopped: Stopped | None = None

    @property
    def state(self) -> int:
        """The stages that answered, as bits."""
        return sum(1 << (number - 1) for number in self.replies)

    @property
    def last(self) -> int:
        """The highest stage that answered, 0 for none."""
        return max(self.replies, default=0)


class Walk:
    """The journeys of a batch. Stages are numbered from 1.

    gates [K, K]: how sure a stage must have been of its answer that a later one verifies it.
    cached [N, K]: tokens of each prompt that each stage has in its cache, None for none.
    """

    def __init__(
        self,
        journeys: Sequence[Journey],
        predictor: Predictor,
        names: Sequence[str],
        vocabularies: Sequence[str],
        units: UnitCosts,
        gates: FloatArray,
        cached: FloatArray | None = None,
    ) -> None:
        self.journeys = list(journeys)
        self._predictor, self._names, self._vocabularies = predictor, names, vocabularies
        self._units, self._gates, self._cached = units, gates, cached
        self._num_stages = len(names)
        prompts = [journey.prompt for journey in journeys]
        self._seen = Seen.begin(predictor.feature_set, prompts, self._num_stages)
        self._beliefs = np.zeros((len(prompts), self._num_stages))
        self._next = np.zeros(len(prompts), dtype=np.int64)
        self._down: set[int] = set()
        for row, journey in enumerate(self.journeys):
            journey.stopped = None
            for number in sorted(journey.replies):
                self._note(number, np.array([row]), [journey.replies[number]])

    def begin(self) -> None:
        """Let every prompt decide where to go from where it stands."""
        self._decide(range(len(self.journeys)))

    def lowest(self) -> int:
        """The lowest stage that a prompt waits for, 0 where none does."""
        waiting = self._next[self._next > 0]
        return int(waiting.min()) if len(waiting) else 0

    def waiting(self, number: int) -> list[int]:
        """The prompts that wait for a stage."""
        rows: list[int] = np.flatnonzero(self._next == number).tolist()
        return rows

    def draft(self, row: int, number: int) -> Draft | None:
        """The last answer of a prompt, for a stage to verify; None where going anew costs less."""
        journey = self.journeys[row]
        if not journey.last:
            return None
        reply = journey.replies[journey.last]
        if confidence(reply) < self._gates[journey.last - 1, number - 1]:
            return None
        done = reply.completion
        return Draft(done.text, done.token_ids, self._vocabularies[journey.last - 1])

    def arrive(
        self, number: int, rows: Sequence[int], outcomes: Sequence[Outcome], seconds: float
    ) -> None:
        """Takes what a stage said to some prompts; each stops, or waits for another stage."""
        replies: dict[int, Reply] = {}
        for row, outcome in zip(rows, outcomes, strict=True):
            self.journeys[row].visits.append(self._visit(row, number, outcome, seconds))
            if isinstance(outcome, Reply):
                replies[row] = outcome
        if replies:
            self._note(number, np.array(list(replies)), list(replies.values()))
        for row in rows:
            self.journeys[row].tried.add(number)
            if row in replies:
                self.journeys[row].replies[number] = replies[row]
        self._decide(rows)

    def close(self, number: int) -> None:
        """Ask a stage no more in this batch; who waits for it decides again."""
        self._down.add(number)
        self._decide(self.waiting(number))

    def stop(self, reason: Stopped) -> None:
        """End all journeys that still go on, each with what it has."""
        for row in np.flatnonzero(self._next):
            journey = self.journeys[row]
            journey.stopped = reason if journey.replies else "failed"
        self._next[:] = 0

    def _note(self, number: int, rows: IntArray, replies: Sequence[Reply]) -> None:
        """Write down what is seen of answers, each beside the last one before it."""
        befores: dict[int, list[Reply | None]] = {}
        for place, row in enumerate(rows):
            earlier = [each for each in self.journeys[row].replies if each < number]
            if earlier:
                before = befores.setdefault(max(earlier), [None] * len(rows))
                before[place] = self.journeys[row].replies[max(earlier)]
        self._seen.note(number, replies, befores, self._vocabularies, rows)

    def _decide(self, rows: Iterable[int]) -> None:
        """Believe and decide anew, prompts that stand at the same state together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            journey = self.journeys[row]
            groups.setdefault((journey.state, id(journey.policy)), []).append(row)
        for (state, _), here in groups.items():
            policy = self.journeys[here[0]].policy
            self._beliefs[here] = self._predictor.beliefs(self._seen.take(np.array(here)), state)
            verdict = policy.decide_batch(
                state, self._beliefs[here], self._costs(here, policy), self._available(here, state)
            )
            self._go_on(here, verdict)

    def _available(self, rows: Sequence[int], state: int) -> BoolArray | None:
        """Which stages can still be asked, [N, K]; None for all after the state."""
        possible = np.ones((len(rows), self._num_stages), dtype=np.bool_)
        for number in self._down:
            possible[:, number - 1] = False
        for place, row in enumerate(rows):
            for number in self.journeys[row].tried:
                possible[place, number - 1] = False
        last = state.bit_length()
        return None if possible[:, last:].all() else possible

    def _costs(self, rows: Sequence[int], policy: Policy) -> FloatArray | None:
        """What each prompt would pay, [N, K, K], where caches make that less than the mean."""
        if self._cached is None or not self._cached[rows].any():
            return None
        steps = np.array(policy.costs)
        return np.stack([self._units.warm(steps, self._cached[row]) for row in rows])

    def _go_on(self, rows: Sequence[int], verdict: Verdict) -> None:
        """Note what was decided for prompts that stand at the same state."""
        columns = (verdict.going, verdict.best, verdict.kept, verdict.stage, verdict.advantage)
        decided = zip(*(column.tolist() for column in columns), strict=True)
        believed = self._beliefs[rows].tolist()
        for row, beliefs, (going, best, kept, stage, advantage) in zip(
            rows, believed, decided, strict=True
        ):
            journey = self.journeys[row]
            journey.returned, journey.p_good = best, kept
            self._next[row] = stage if going else 0
            if not going:
                journey.stopped = self._why(journey, advantage)
            if journey.visits:
                visit = journey.visits[-1]
                visit.p_good, visit.advantage, visit.beliefs = kept, advantage, tuple(beliefs)

    def _why(self, journey: Journey, advantage: float) -> Stopped:
        if not journey.replies:
            return "failed"
        if journey.last == self._num_stages:
            return "last"
        return "unavailable" if advantage == -np.inf else "enough"

    def _visit(self, row: int, number: int, outcome: Outcome, seconds: float) -> Visit:
        """A stage's part in a journey, with what it cost; what is believed then comes later."""
        journey, at = self.journeys[row], number - 1
        name, price = self._names[at], float(self._units.anew[at])
        if isinstance(outcome, Failure):
            cost = 0.0 if outcome.fault == "down" else price
            problem = outcome.problem
            return Visit(name, "", cost, fault=outcome.fault, problem=problem, seconds=seconds)
        usage = outcome.completion.usage
        saved = usage.cached_tokens * float(self._units.prompt[at])
        if outcome.mode == "verified" and journey.last:
            same = self._vocabularies[journey.last - 1] == self._vocabularies[at] != ""
            share = accepted_shares([outcome], [journey.replies[journey.last]], same_ids=same)
            price = float(self._units.from_draft(share[:, None])[0, at])
        return Visit(
            name,
            outcome.completion.text,
            cost=max(0.0, price - saved),
            mode=outcome.mode,
            new_tokens=usage.completion_tokens,
            accepted_tokens=usage.accepted_tokens,
            cached_tokens=usage.cached_tokens,
            seconds=seconds,
        )
