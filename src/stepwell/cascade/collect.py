"""Running all stages on all prompts, so that a predictor can be fitted without bias.

Logging only the stages that a policy visited would show it only what it already believes. Owns what
is learnt from the answers: features, labels, and how much of an answer stays in a later one. Files
of it, and going on after a stop, are in collection.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.cascade.beliefs.features import FeatureSet, Seen, select
from stepwell.cascade.beliefs.overlap import accepted_shares, confidence
from stepwell.cascade.beliefs.predictor import Predictor
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray, Paths
from stepwell.cascade.stage import Reply, Stage
from stepwell.errors import StageError
from stepwell.tasks.questions import Question


@dataclass(frozen=True, eq=False)
class Collected:
    """What every stage answered to N prompts.

    seen: as the predictor reads them. good [N, K]: 1 where the answer is right, or the share of
    several that is. accepted [N, K, K]: at [i, m-1, n-1] the share of stage m's answer that stays
    when stage n verifies it, m < n. sure [N, K]: geometric mean probability of an answer's tokens.
    weights [N]; depths [N]; texts by stage, then prompt.
    """

    prompts: tuple[str, ...]
    seen: Seen
    good: FloatArray
    accepted: FloatArray
    sure: FloatArray
    weights: FloatArray
    depths: IntArray
    texts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def paths(self, predictor: Predictor) -> Paths:
        """What would have been believed after every set of stages, and what was true."""
        states = range(1 << self.good.shape[1])
        beliefs = [predictor.beliefs(self.seen, state) for state in states]
        return Paths(np.stack(beliefs, axis=1), self.good, self.weights)

    def take(self, rows: IntArray | BoolArray) -> Collected:
        """The same for some of the prompts."""
        places = np.arange(len(self))[rows].tolist()
        return Collected(
            tuple(self.prompts[place] for place in places),
            self.seen.take(rows),
            self.good[rows],
            self.accepted[rows],
            self.sure[rows],
            self.weights[rows],
            self.depths[rows],
            tuple(tuple(stage[place] for place in places) for stage in self.texts),
        )

    @classmethod
    def joined(cls, parts: Sequence[Collected]) -> Collected:
        """Several collections of the same ladder, one after the other."""
        return cls(
            tuple(prompt for part in parts for prompt in part.prompts),
            Seen(
                parts[0].seen.features,
                np.concatenate([part.seen.prompt for part in parts]),
                np.concatenate([part.seen.answers for part in parts]),
                np.concatenate([part.seen.pairs for part in parts]),
            ),
            np.concatenate([part.good for part in parts]),
            np.concatenate([part.accepted for part in parts]),
            np.concatenate([part.sure for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.depths for part in parts]),
            tuple(
                tuple(text for texts in stage for text in texts)
                for stage in zip(*(part.texts for part in parts), strict=True)
            ),
        )


def collect(
    stages: Sequence[Stage],
    questions: Sequence[Question],
    *,
    features: FeatureSet | None = None,
    rollouts: int = 1,
    by_agreement: bool = False,
    on_stage: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Collected:
    """All stages' answers to all questions, each from the start, and how right they are.

    rollouts: so many answers, of neighbouring seeds, the first of which is looked at and all of
    which are graded. by_agreement: right is what the largest stage says, where nothing else can
    tell. `on_stage` is told a stage's name before it begins. Raises StageError where a stage fails:
    what it would have said is then unknown.
    """
    chosen = features or select()
    prompts = [question.prompt for question in questions]
    seen = Seen.begin(chosen, prompts, len(stages))
    vocabularies = [stage.vocabulary for stage in stages]
    replies: list[Sequence[Reply]] = []
    for number, stage in enumerate(stages, start=1):
        if on_stage is not None:
            on_stage(stage.name)
        observe = chosen.observe.at(number)
        found = stage.generate(prompts, observe=observe, **sampling)
        check_finished(stage, found)
        seen.note(number, found, dict(enumerate(replies, start=1)), vocabularies)
        replies.append(found)
    texts = [tuple(reply.completion.text for reply in found) for found in replies]
    answers = [[each] for each in texts]
    for stage, own in zip(stages, answers, strict=True):
        own += [_again(stage, prompts, attempt, sampling) for attempt in range(1, rollouts)]
    return Collected(
        prompts=tuple(prompts),
        seen=seen,
        good=_agreeing(answers) if by_agreement else _graded(questions, answers),
        accepted=_accepted(replies, vocabularies),
        sure=np.array([[confidence(reply) for reply in found] for found in replies]).T,
        weights=np.array([question.weight for question in questions], dtype=np.float64),
        depths=np.array([question.depth for question in questions], dtype=np.int64),
        texts=tuple(texts),
    )


def check_finished(stage: Stage, replies: Sequence[Reply]) -> None:
    """Nothing; raises StageError where an answer did not come to its end."""
    for number, reply in enumerate(replies):
        done = reply.completion
        if done.finish_reason not in ("stop", "length"):
            raise StageError(
                f"Stage {stage.name!r} did not answer prompt {number}: {done.finish_reason}"
                f" ({done.error or 'nothing more is known'}).",
                fix="mend the stage, then run the same command: it goes on from here.",
            )


def _again(
    stage: Stage, prompts: Sequence[str], attempt: int, sampling: dict[str, Any]
) -> tuple[str, ...]:
    """Another answer to each prompt, with another seed."""
    seed = int(sampling.get("seed", 0)) + attempt
    found = stage.generate(prompts, **{**sampling, "seed": seed})
    check_finished(stage, found)
    return tuple(reply.completion.text for reply in found)


def _graded(
    questions: Sequence[Question], answers: Sequence[Sequence[Sequence[str]]]
) -> FloatArray:
    """The share of right answers, [N, K], from texts by stage, rollout and prompt."""
    right = [
        [
            np.mean([question.grade(rollout[row]) for rollout in rollouts])
            for row, question in enumerate(questions)
        ]
        for rollouts in answers
    ]
    return np.array(right, dtype=np.float64).reshape(len(answers), len(questions)).T


def _agreeing(answers: Sequence[Sequence[Sequence[str]]]) -> FloatArray:
    """The share of pairs of answers, one of a stage and one of the largest, that are the same."""
    largest = answers[-1]
    shares = [
        np.mean(
            [
                [old == new for old, new in zip(mine, theirs, strict=True)]
                for mine in rollouts
                for theirs in largest
            ],
            axis=0,
        )
        for rollouts in answers[:-1]
    ]
    return np.stack([*shares, np.ones(len(largest[0]))], axis=1).astype(np.float64)


def _accepted(replies: Sequence[Sequence[Reply]], vocabularies: Sequence[str]) -> FloatArray:
    """The shares of answers that stay in later ones, [N, K, K]; 0 where not m < n."""
    num_stages, num_prompts = len(replies), len(replies[0])
    found = np.zeros((num_prompts, num_stages, num_stages))
    for later in range(num_stages):
        for earlier in range(later):
            same = vocabularies[later] == vocabularies[earlier] != ""
            found[:, earlier, later] = accepted_shares(
                replies[later], replies[earlier], same_ids=same
            )
    return found
