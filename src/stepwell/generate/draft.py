"""What to draft, and how much of it, where no model is asked: prompt lookup and the draft length.

Owns the index in which a sequence looks up its own past, the means of measured seconds, and the
controller that weighs them against what is accepted. Times nothing, runs no model and verifies
nothing.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stepwell.errors import ConfigError, ShapeError

INITIAL_ACCEPTANCE = 0.7
"""What is believed before a token was verified: high enough to find out."""
SHRINKAGE = 2.0
"""How many tokens the acceptance at all positions counts for at each single one."""
MAX_DRAFT = 8
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of tokens by which a past is looked up. The more of them agree, the more may follow."""
RECENT = 15
"""Measurements of which the median counts."""


class PromptLookup:
    """Drafts that repeat what a sequence already said after the same tokens.

    Adding a token takes as long as the `sizes`, numbers of tokens that are looked up, together;
    drafting k of them as much and k more, however long the sequence is. Source: Saxena 2023, Prompt
    lookup decoding; unlike transformers' generator, the latest match counts instead of the first
    one.
    """

    def __init__(self, ids: Iterable[int] = (), *, sizes: Sequence[int] = SIZES) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"sizes are {list(sizes)}, expected one or more, each above 0.")
        self._sizes = sorted(sizes, reverse=True)
        self._ids: list[int] = []
        self._followed_at: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Append tokens that are final: the prompt's, then those that verification let stay."""
        for token in ids:
            for ngram in self._endings():
                self._followed_at[ngram] = len(self._ids)
            self._ids.append(token)

    def match(self) -> int:
        """How many of the last tokens stood so before: the largest of the sizes, 0 for none."""
        return next((len(ngram) for ngram in self._endings() if ngram in self._followed_at), 0)

    def propose(self, length: int) -> list[int]:
        """The `length` tokens that followed the longest ending seen before, where it came last.

        None where no ending was seen before. What runs past the end of the sequence goes on with
        the draft itself, so that a repetition is drafted on and on.
        """
        found = (self._followed_at.get(ngram) for ngram in self._endings())
        start = next((place for place in found if place is not None), None)
        if start is None:
            return []
        draft = self._ids[start : start + length]
        return list(itertools.islice(itertools.cycle(draft), length))

    def _endings(self) -> Iterable[tuple[int, ...]]:
        """The n-grams that the sequence ends with, longest first."""
        count = len(self._ids)
        return (tuple(self._ids[-size:]) for size in self._sizes if size <= count)


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Measured seconds: `verify[k]` of a target step over k drafted tokens, `draft` of one of them.

    A step over none is plain decoding. Raises ConfigError unless all are finite, verify[k] above 0.
    """

    verify: tuple[float, ...]
    draft: float

    def __post_init__(self) -> None:
        sound = all(0 < seconds < math.inf for seconds in self.verify)
        if len(self.verify) < 2 or not sound or not 0 <= self.draft < math.inf:
            raise ConfigError(
                f"verify is {self.verify} and draft {self.draft} seconds, expected positive numbers"
                " for plain decoding and at least one draft length, and 0 or more for a token."
            )

    def of(self, length: int) -> float:
        """Seconds to draft so many tokens and verify them."""
        return self.verify[length] + length * self.draft


def expected_tokens(acceptance: Sequence[float]) -> list[float]:
    """Mean tokens that a step yields with a draft of length 0, 1, ..., len(acceptance).

    acceptance[i] is the chance that drafted token i stays given that those before it did. Where all
    are a, the k-th is (1 - a^(k+1)) / (1 - a). Source: Leviathan et al. 2023, equation 1.
    """
    survival = itertools.accumulate(acceptance, lambda before, chance: before * chance)
    return list(itertools.accumulate(survival, initial=1.0))


def best_length(acceptance: Sequence[float], seconds: StepSeconds) -> int:
    """The draft length with the most expected tokens a second, the shortest of several; maybe 0.

    Raises ShapeError unless there is one acceptance for each length above 0 that was measured.
    Source: Leviathan et al. 2023, section 3.5, with measured seconds for their cost ratio.
    """
    if len(acceptance) != len(seconds.verify) - 1:
        raise ShapeError(
            f"{len(acceptance)} acceptances for {len(seconds.verify)} measured steps, expected one"
            " step more: that of plain decoding."
        )
    tokens = expected_tokens(acceptance)
    rates = [count / seconds.of(length) for length, count in enumerate(tokens)]
    return rates.index(max(rates))


class DraftLength:
    """Chooses how many tokens to draft at each step from what was accepted at those before.

    Lengths depend on the seconds and results that it is given and on nothing else. memory: after
    so many verified steps, what was seen counts for 1/e. While drafting does not pay, one token is
    drafted now and then to see whether it does again; that takes at most probe_share of the time.
    """

    def __init__(
        self, max_length: int = 8, *, memory: float = 32, probe_share: float = 0.02
    ) -> None:
        if max_length < 1 or memory < 1 or not 0 < probe_share <= 1:
            raise ConfigError(
                f"max_length is {max_length}, memory {memory}, probe_share {probe_share}; expected"
                " 1 or more, 1 or more, and a share above 0 and at most 1."
            )
        self._fading = math.exp(-1 / memory)
        self._probe_share = probe_share
        self._tried = [1.0] * max_length
        self._kept = [INITIAL_ACCEPTANCE] * max_length
        self._paused = 0

    @property
    def acceptance(self) -> tuple[float, ...]:
        """The chance that a drafted token stays given those before it did, by its place."""
        overall = sum(self._kept) / sum(self._tried)
        return tuple(
            (kept + SHRINKAGE * overall) / (tried + SHRINKAGE)
            for kept, tried in zip(self._kept, self._tried, strict=True)
        )

    def choose(self, seconds: StepSeconds, *, resuming: float = 0.0) -> int:
        """The length to draft at this step; to be called once a step. Raises as `best_length`.

        resuming: seconds that a drafter takes before its first token after a pause.
        """
        best = best_length(self.acceptance, seconds)
        if best:
            self._paused = 0
            return best
        self._paused += 1
        price = resuming + seconds.of(1) - seconds.of(0)
        return int(self._paused * self._probe_share * seconds.of(0) >= price)

    def observe(self, num_drafted: Sequence[int], num_accepted: Sequence[int]) -> None:
        """Learn from a step in which each row drafted so many tokens, of which so many stayed."""
        if not any(num_drafted):
            return
        # What was seen before a pause counts for one token, so that few probes overrule it.
        fading = 1 / max(1.0, sum(self._tried)) if self._paused else self._fading
        self._paused = 0
        self._tried = [fading * tried for tried in self._tried]
        self._kept = [fading * kept for kept in self._kept]
        for drafted, accepted in zip(num_drafted, num_accepted, strict=True):
            for place in range(min(drafted, accepted + 1)):
                self._tried[place] += 1
                self._kept[place] += place < accepted


class Seconds:
    """Measured seconds by size: medians of the last few, and straight lines between the sizes.

    A larger size takes no less than a smaller one, so that one measured when the machine was busy
    is held down by what was measured since of the sizes above it.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._measured: dict[int, deque[float]] = {}
        self._medians: list[float] = []  # by the sizes in order; never falling

    def add(self, size: int, seconds: float) -> None:
        """Take in a measurement."""
        if size not in self._measured:
            bisect.insort(self._sizes, size)
            self._measured[size] = deque(maxlen=RECENT)
        self._measured[size].append(seconds)
        lowest = math.inf
        medians = []
        for each in reversed(self._sizes):
            lowest = min(lowest, statistics.median_low(self._measured[each]))
            medians.append(lowest)
        self._medians = medians[::-1]

    def reaches(self, size: int) -> bool:
        """Whether this size or a smaller one was measured."""
        return bool(self._sizes) and self._sizes[0] <= size

    def of(self, size: int) -> float:
        """Seconds that this size takes, once any was measured; those of the smallest below it."""
        place = bisect.bisect_left(self._sizes, size)
        if place == len(self._sizes):
            return self._medians[-1] + self._slope() * (size - self._sizes[-1])
        if place == 0 or self._sizes[place] == size:
            return self._medians[place]
        share = (size - self._sizes[place - 1]) / (self._sizes[place] - self._sizes[place - 1])
        return self._medians[place - 1] + share * (self._medians[place] - self._medians[place - 1])

    def _slope(self) -> float:
        """Seconds that one more takes beyond the largest size measured.

        The mean of all before; where only one was measured, as if half of it grew with size.
        """
        first, last = self._sizes[0], self._sizes[-1]
        if first == last:
            return self._medians[0] / (2 * first)
        return (self._medians[-1] - self._medians[0]) / (last - first)


@dataclass(eq=False)
class Pace:
    """What is known of drafts of one kind: how much of them stays, and seconds a token by rows.

    reading: seconds that it last took to read what it had not drafted itself.
    """

    length: DraftLength = field(default_factory=lambda: DraftLength(MAX_DRAFT))
    seconds: Seconds = field(default_factory=Seconds)
    reading: float = 0.0

    def choose(self, rows: int, others: int, verify: Seconds) -> int:
        """The best draft length for `rows` of a batch, beside others that draft nothing."""
        lengths = range(MAX_DRAFT + 1)
        seconds = tuple(verify.of(others + rows * (length + 1)) for length in lengths)
        drafting = self.seconds.of(rows) if self.seconds.reaches(rows) else 0.0
        return self.length.choose(StepSeconds(seconds, drafting), resuming=self.reading)
