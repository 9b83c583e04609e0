"""What a temperature came to: means over samples, votes, and intervals over prompts.

Pure arithmetic on graded answers. Prompts are the unit that is drawn anew for an interval: samples
of one prompt belong together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.evals.certainty import Certainty
from stepwell.evals.frontier import Interval, bootstrap


@dataclass(frozen=True, eq=False)
class Sample:
    """One answer: to which question, at which temperature, the how manieth; what came of it.

    final: what of the text counts in a vote.
    """

    question: int
    temperature: float
    number: int
    text: str
    final: str
    correct: bool
    certainty: Certainty


@dataclass(frozen=True)
class Confident:
    """Tokens at which the likeliest one's probability was above the threshold."""

    threshold: float
    count: int
    share: Interval


@dataclass(frozen=True)
class TemperatureRow:
    """What one temperature came to, with 95% intervals over prompts.

    accuracy: the mean over samples. majority: of the answer that most samples of a prompt give; of
    several, the one that came first. agreement: the share of samples that give it. distinct: how
    many different answers a prompt has. entropy: of the model's distribution, in nats, and logprob,
    means over generated tokens. length: tokens of an answer. Where the temperature is greedy, one
    sample stands for all.
    """

    temperature: float
    samples: int
    num_tokens: int
    accuracy: Interval
    majority: Interval
    agreement: Interval
    distinct: Interval
    entropy: Interval
    logprob: Interval
    length: Interval
    confident: tuple[Confident, ...]

    def plain(self) -> dict[str, Any]:
        """Its values as JSON holds them."""
        return asdict(self)


def vote(samples: Sequence[Sample]) -> tuple[Sample, float]:
    """The first sample with the answer that most samples of a prompt give, and their share.

    Of answers with as many votes the one that came first wins, which is one of them at random.
    """
    [(winner, votes)] = Counter(sample.final for sample in samples).most_common(1)
    first = next(sample for sample in samples if sample.final == winner)
    return first, votes / len(samples)


def summarise(
    prompts: Sequence[Sequence[Sample]],
    weights: Sequence[float],
    thresholds: Sequence[float],
    *,
    resamples: int = 2_000,
) -> TemperatureRow:
    """The row of one temperature, of the samples of each prompt, as many for each.

    weights: how often each prompt is asked.
    """
    means, tokens = _by_prompt(prompts), _by_token(prompts, thresholds)
    count = np.array([sum(len(each.certainty) for each in group) for group in prompts])

    def statistic(weights_N: FloatArray) -> list[float]:
        by_prompt = means @ weights_N / weights_N.sum()
        return [*by_prompt, *(tokens @ weights_N / (count @ weights_N))]

    asked = np.array(weights, dtype=np.float64)
    found = bootstrap(statistic, asked, resamples=resamples)
    accuracy, majority, agreement, distinct, length, entropy, logprob, *shares = found
    return TemperatureRow(
        temperature=prompts[0][0].temperature,
        samples=len(prompts[0]),
        num_tokens=round(float(count @ asked)),
        accuracy=accuracy,
        majority=majority,
        agreement=agreement,
        distinct=distinct,
        entropy=entropy,
        logprob=logprob,
        length=length,
        confident=tuple(
            Confident(threshold, round(float(counts @ asked)), share)
            for threshold, counts, share in zip(thresholds, tokens[2:], shares, strict=True)
        ),
    )


def _by_prompt(prompts: Sequence[Sequence[Sample]]) -> FloatArray:
    """Accuracy, that of the vote, agreement, different answers and mean length, [5, N]."""
    rows = []
    for samples in prompts:
        winner, agreement = vote(samples)
        right = np.mean([sample.correct for sample in samples])
        distinct = len({sample.final for sample in samples})
        length = np.mean([len(sample.certainty) for sample in samples])
        rows.append([right, winner.correct, agreement, distinct, length])
    return np.array(rows, dtype=np.float64).T


def _by_token(prompts: Sequence[Sequence[Sample]], thresholds: Sequence[float]) -> FloatArray:
    """Sums over the tokens of a prompt's answers, [2 + thresholds, N].

    Of the entropy, of the log-probability, and of who is confident.
    """
    readings = [[sample.certainty for sample in samples] for samples in prompts]
    rows = [
        [sum(each.entropy.sum() for each in group) for group in readings],
        [sum(each.logprob.sum() for each in group) for group in readings],
        *(
            [sum(each.num_confident(threshold) for each in group) for group in readings]
            for threshold in thresholds
        ),
    ]
    return np.array(rows, dtype=np.float64)
