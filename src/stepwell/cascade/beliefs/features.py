"""What prompts and replies say of themselves, as fixed rows of numbers, NaN where unknown.

    of the prompt   [N, P]         known before any stage runs, so that a rule can choose where to
                                   begin; the prompt's entropy, once the smallest stage has run
    of an answer    [N, K, F]      its token log-probabilities, margins and length
    of two answers  [N, K, K, G]   stage n's beside stage m's, at [n-1, m-1], m < n

Sums and means of log-probabilities fall with length, so quantiles, the minimum and the length
itself stand beside the mean. Owns the list of features and which of them a set of stages makes
known; what two answers have in common is computed in overlap.py, and weighing is the predictor's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np

from stepwell.cascade.beliefs.overlap import (
    VARIATION_TOKENS,
    Before,
    agreement,
    length_ratio,
    verification,
)
from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray
from stepwell.cascade.stage import Observe, Reply
from stepwell.errors import ConfigError, DataError, ShapeError, suggest

QUANTILES = (0.0, 0.1, 0.25, 0.5)
LOWEST_LOGPROB = -40.0  # below this a token was as good as impossible, however far below
HIGHEST_MARGIN = -LOWEST_LOGPROB
ALL = "all"


class Group(NamedTuple):
    """Features that are chosen together: their names, and what stages must tell for them."""

    prompt: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    observe: Observe = Observe()


FEATURE_GROUPS: Mapping[str, Group] = {
    "prompt": Group(
        prompt=("prompt_log_length", "prompt_digits", "prompt_letters", "prompt_distinct")
    ),
    "prompt_entropy": Group(prompt=("prompt_entropy",), observe=Observe(prompt_entropy=True)),
    "logprobs": Group(
        answer=(
            "logprob_minimum",
            "logprob_quantile_10",
            "logprob_quantile_25",
            "logprob_median",
            "logprob_mean",
            "probability_minimum",
            "probability_geometric_mean",
        )
    ),
    "length": Group(answer=("log_length",), pair=("length_ratio",)),
    "margin": Group(answer=("margin_minimum", "margin_mean"), observe=Observe(top_logprobs=2)),
    "agreement": Group(pair=("agreement",)),
    "verification": Group(
        pair=("accepted_share", "variation_mean", "variation_max"),
        observe=Observe(top_logprobs=VARIATION_TOKENS),
    ),
}


@dataclass(frozen=True)
class FeatureSet:
    """The features of some groups, in the order of FEATURE_GROUPS. Made by `select`."""

    groups: tuple[str, ...]

    @cached_property
    def prompt_names(self) -> tuple[str, ...]:
        """Of the P features of a prompt."""
        return tuple(chain.from_iterable(FEATURE_GROUPS[name].prompt for name in self.groups))

    @cached_property
    def answer_names(self) -> tuple[str, ...]:
        """Of the F features of an answer by itself."""
        return tuple(chain.from_iterable(FEATURE_GROUPS[name].answer for name in self.groups))

    @cached_property
    def pair_names(self) -> tuple[str, ...]:
        """Of the G features of an answer beside an earlier one."""
        return tuple(chain.from_iterable(FEATURE_GROUPS[name].pair for name in self.groups))

    @property
    def observe(self) -> Observe:
        """What every stage is to tell; the prompt's entropy is read from the smallest stage."""
        asked = [FEATURE_GROUPS[name].observe for name in self.groups]
        return Observe(
            max(each.top_logprobs for each in asked), any(each.prompt_entropy for each in asked)
        )

    def prompt_features(self, prompts: Sequence[str]) -> FloatArray:
        """Those of prompts before any stage ran, [N, P]: the entropy is NaN."""
        columns = [_PROMPT[name](prompts) for name in self.groups if name in _PROMPT]
        return _joined(columns, len(prompts))

    def answer_features(self, replies: Sequence[Reply]) -> FloatArray:
        """Those of each answer by itself, [N, F].

        Raises DataError where a log-probability is NaN, ShapeError where a reply tells the
        likeliest tokens of another number of places than its answer has.
        """
        columns = [_ANSWER[name](replies) for name in self.groups if name in _ANSWER]
        return _joined(columns, len(replies))

    def pair_features(
        self, replies: Sequence[Reply], before: Before, *, same_ids: bool
    ) -> FloatArray:
        """Those of each answer beside an earlier stage's to the same prompt, [N, G].

        same_ids: both stages have the same vocabulary. Without it, beginnings and lengths are
        counted in characters, and variation is NaN. Errors as of `answer_features`.
        """
        columns = [_PAIR[name](replies, before, same_ids) for name in self.groups if name in _PAIR]
        return _joined(columns, len(replies))

    def known(self, state: int, num_stages: int) -> BoolArray:
        """Which columns of `Seen.flat` just the stages of a state (bit n-1 for stage n) tell, [D].

        Of two answers' features, those of each answer with the last one run before it.
        """
        run = state >> np.arange(num_stages) & 1 == 1
        prompt = [bool(run[0]) or name != "prompt_entropy" for name in self.prompt_names]
        pairs = np.zeros((num_stages, num_stages), dtype=np.bool_)
        stages = np.flatnonzero(run)
        pairs[stages[1:], stages[:-1]] = True
        answers = np.repeat(run, len(self.answer_names))
        later, earlier = np.tril_indices(num_stages, -1)
        beside = np.repeat(pairs[later, earlier], len(self.pair_names))
        return np.concatenate([np.array(prompt, dtype=np.bool_), answers, beside])


def select(names: Iterable[str] = (ALL,)) -> FeatureSet:
    """The features of the groups named; "all" is every group.

    Raises ConfigError for a name that is none, and where none is given.
    """
    asked = {names} if isinstance(names, str) else set(names)
    for name in sorted(asked - {ALL, *FEATURE_GROUPS}):
        raise ConfigError(
            f"There is no group of features {name!r}. {suggest(name, [ALL, *FEATURE_GROUPS])}"
        )
    if not asked:
        raise ConfigError("No features are named, expected at least one group.", fix="use all.")
    return FeatureSet(tuple(name for name in FEATURE_GROUPS if ALL in asked or name in asked))


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of N prompts and of the answers to them: see the top of this module.

    Holds the answers of all stages that ran; what is known without some of them is told by
    `FeatureSet.known`. NaN elsewhere.
    """

    features: FeatureSet
    prompt: FloatArray  # [N, P]
    answers: FloatArray  # [N, K, F]
    pairs: FloatArray  # [N, K, K, G]

    def __post_init__(self) -> None:
        stages = self.answers.shape[1:2]
        expected = {
            "prompt": (len(self), len(self.features.prompt_names)),
            "answers": (len(self), *stages, len(self.features.answer_names)),
            "pairs": (len(self), *stages, *stages, len(self.features.pair_names)),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ShapeError(f"{name} is {list(found)}, expected {list(shape)}.")

    @classmethod
    def begin(cls, features: FeatureSet, prompts: Sequence[str], num_stages: int) -> Seen:
        """What is known of prompts before any stage ran; `note` writes into it."""
        shape = len(prompts), num_stages
        return cls(
            features,
            features.prompt_features(prompts),
            np.full((*shape, len(features.answer_names)), np.nan),
            np.full((*shape, num_stages, len(features.pair_names)), np.nan),
        )

    def note(
        self,
        stage: int,
        replies: Sequence[Reply],
        earlier: Mapping[int, Before],
        vocabularies: Sequence[str],
        rows: IntArray | None = None,
    ) -> None:
        """Write down what a stage, counted from 1, said to the prompts of some rows, or to all.

        earlier: by stage number, what stages before it said to the same prompts, None where one did
        not run. Only the last one run is ever read, so a caller that knows it may give that one
        alone. vocabularies are those of all K stages, "" where unknown.
        """
        at = np.arange(len(self)) if rows is None else rows
        self.answers[at, stage - 1] = self.features.answer_features(replies)
        for number, before in earlier.items():
            ours, theirs = vocabularies[stage - 1], vocabularies[number - 1]
            self.pairs[at, stage - 1, number - 1] = self.features.pair_features(
                replies, before, same_ids=ours == theirs != ""
            )
        if stage == 1 and "prompt_entropy" in self.features.prompt_names:
            column = self.features.prompt_names.index("prompt_entropy")
            self.prompt[at, column] = [reply.prompt_entropy for reply in replies]

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def num_stages(self) -> int:
        """K."""
        return int(self.answers.shape[1])

    def flat(self) -> FloatArray:
        """All of it as one row a prompt, [N, D]: prompt, answers by stage, pairs by later stage."""
        later, earlier = _pairs_of(self.num_stages)
        parts = self.prompt, self.answers, self.pairs[:, later, earlier]
        rows = [part.reshape(len(self), math.prod(part.shape[1:])) for part in parts]
        return np.concatenate(rows, axis=1)

    def take(self, rows: IntArray | BoolArray | slice) -> Seen:
        """The same for some of the prompts."""
        return Seen(self.features, self.prompt[rows], self.answers[rows], self.pairs[rows])


@cache
def _pairs_of(num_stages: int) -> tuple[IntArray, IntArray]:
    """Places of all pairs of a later and an earlier stage, counted from 0."""
    later, earlier = np.tril_indices(num_stages, -1)
    return later.astype(np.int64), earlier.astype(np.int64)


def _prompt(prompts: Sequence[str]) -> FloatArray:
    """Log length in characters, and the shares of digits, letters and distinct characters."""
    rows = np.full((len(prompts), 4), np.nan)
    for row, prompt in zip(rows, prompts, strict=True):
        counts, length = Counter(prompt), len(prompt)
        row[0] = math.log1p(length)
        if length:
            digits = sum(count for letter, count in counts.items() if letter.isdigit())
            letters = sum(count for letter, count in counts.items() if letter.isalpha())
            row[1:] = digits / length, letters / length, len(counts) / length
    return rows


def _prompt_entropy(prompts: Sequence[str]) -> FloatArray:
    """Nothing yet: the smallest stage's reply tells it."""
    return np.full((len(prompts), 1), np.nan)


def _logprobs(replies: Sequence[Reply]) -> FloatArray:
    """Quantiles and mean of the log-probabilities, then probability minimum and geometric mean."""
    rows = np.full((len(replies), 7), np.nan)
    for row, reply in zip(rows, replies, strict=True):
        ordered = sorted([max(value, LOWEST_LOGPROB) for value in reply.completion.logprobs])
        if ordered:
            mean = sum(ordered) / len(ordered)
            if math.isnan(mean):
                raise DataError("logprobs hold NaN: the stage's logits were not finite.")
            quantiles = [_quantile(ordered, share) for share in QUANTILES]
            row[:] = *quantiles, mean, math.exp(ordered[0]), math.exp(mean)
    return rows


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest of rising numbers, by linear interpolation."""
    place = share * (len(ordered) - 1)
    below = int(place)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low + (place - below) * (high - low)


def _length(replies: Sequence[Reply]) -> FloatArray:
    """The logarithm of 1 + the number of tokens."""
    lengths = [len(reply.completion.logprobs) for reply in replies]
    logarithms: FloatArray = np.log1p(np.array(lengths, dtype=np.float64))[:, None]
    return logarithms


def _margin(replies: Sequence[Reply]) -> FloatArray:
    """The least and the mean of the nats by which the likeliest token beat the runner-up."""
    rows = np.full((len(replies), 2), np.nan)
    for row, reply in zip(rows, replies, strict=True):
        told, tokens = len(reply.top_logprobs), len(reply.completion.logprobs)
        if told and told != tokens:
            raise ShapeError(f"top_logprobs tell of {told} places, the answer has {tokens} tokens.")
        tops = [place for place in reply.top_logprobs if len(place) > 1]
        margins = [min(place[0][1] - place[1][1], HIGHEST_MARGIN) for place in tops]
        if margins:
            mean = sum(margins) / len(margins)
            row[:] = min(margins), mean
            if math.isnan(mean):
                raise DataError("top_logprobs hold NaN: the stage's logits were not finite.")
    return rows


_PROMPT: Mapping[str, Callable[[Sequence[str]], FloatArray]] = {
    "prompt": _prompt,
    "prompt_entropy": _prompt_entropy,
}
_ANSWER: Mapping[str, Callable[[Sequence[Reply]], FloatArray]] = {
    "logprobs": _logprobs,
    "length": _length,
    "margin": _margin,
}
_PAIR: Mapping[str, Callable[[Sequence[Reply], Before, bool], FloatArray]] = {
    "length": length_ratio,
    "agreement": agreement,
    "verification": verification,
}


def _joined(columns: Sequence[FloatArray], num_rows: int) -> FloatArray:
    return np.concatenate([np.empty((num_rows, 0)), *columns], axis=1)
