"""What two stages' answers to one prompt have in common: text, first tokens, and distributions.

Owns the numbers for pairs of replies, NaN where one cannot be known. Tokens are compared by their
ids where both stages have the same vocabulary, and texts by their characters where not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from stepwell.cascade.rule.paths import FloatArray
from stepwell.cascade.stage import Reply, TopLogprobs
from stepwell.errors import DataError

VARIATION_TOKENS = 5  # told at each place; of more, the likeliest
Before = Sequence[Reply | None]
"""The earlier stage's reply to each prompt; None where it did not run."""


def agreement(
    replies: Sequence[Reply],
    before: Before,
    same_ids: bool,  # noqa: ARG001  # texts are compared
) -> FloatArray:
    """1 where an answer's text equals the earlier one's, 0 where it does not, [N, 1]."""
    pairs = zip(replies, before, strict=True)
    equal = [math.nan if old is None else _text(old) == _text(new) for new, old in pairs]
    return np.array(equal, dtype=np.float64)[:, None]


def length_ratio(replies: Sequence[Reply], before: Before, same_ids: bool) -> FloatArray:
    """The logarithm of how many times longer an answer is than the earlier one, [N, 1].

    Of lengths with 1 added, so that an empty answer has one.
    """
    return np.array(
        [
            [math.nan if pair is None else math.log1p(len(pair[0])) - math.log1p(len(pair[1]))]
            for pair in _sequences(replies, before, same_ids)
        ]
    ).reshape(-1, 1)


def verification(replies: Sequence[Reply], before: Before, same_ids: bool) -> FloatArray:
    """What verifying the earlier answer as a draft shows, [N, 3].

    The share of the draft that stays, which is its common beginning with the answer; then mean and
    maximum of `total_variation` over the places that follow a common beginning.
    """
    found = np.full((len(replies), 3), np.nan)
    tops: list[tuple[int, Sequence[TopLogprobs], Sequence[TopLogprobs]]] = []
    for row, pair in enumerate(_sequences(replies, before, same_ids)):
        if pair is None:
            continue
        common, (new, old) = _common_beginning(*pair), (replies[row], before[row])
        if len(pair[1]):
            found[row, 0] = common / len(pair[1])
        by_ids = not isinstance(pair[0], str)
        if by_ids and old is not None and _alike(new.top_logprobs, old.top_logprobs):
            tops.append((row, new.top_logprobs[: common + 1], old.top_logprobs[: common + 1]))
    if tops:
        rows, *told = zip(*tops, strict=True)
        found[list(rows), 1:] = _variations(*told)
    return found


def accepted_shares(
    replies: Sequence[Reply], before: Sequence[Reply], *, same_ids: bool
) -> FloatArray:
    """The share of each earlier answer that is a common beginning with the later one, [N]."""
    pairs = _sequences(replies, before, same_ids)
    shares = [_common_beginning(*pair) / max(len(pair[1]), 1) for pair in pairs if pair is not None]
    return np.array(shares, dtype=np.float64)


def confidence(reply: Reply) -> float:
    """The geometric mean probability of an answer's tokens; 0 for none."""
    logprobs = reply.completion.logprobs
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def total_variation(
    ids: FloatArray, probabilities: FloatArray, other_ids: FloatArray, other: FloatArray
) -> FloatArray:
    """A lower bound of the total variation between distributions told in part, [R].

    At each place each side tells the probabilities [M, R] of some tokens, which it names by ids.
    Total variation is the most that any event's probabilities differ by. Two events are tried: all
    tokens told that one side holds for likelier than the other. Where the other side did not tell a
    token, all that is known is that its untold tokens share what is left of its probability.
    """
    equal = ids[:, None] == other_ids  # [M, M, R]
    there, here = (equal * other).sum(axis=1), (equal * probabilities[:, None]).sum(axis=0)
    likelier_here = _surplus(probabilities, there, 1.0 - other.sum(axis=0))
    likelier_there = _surplus(other, here, 1.0 - probabilities.sum(axis=0))
    bound: FloatArray = np.minimum(np.maximum(likelier_here, likelier_there), 1.0)
    return bound


def _surplus(told: FloatArray, across: FloatArray, untold: FloatArray) -> FloatArray:
    """How far one side's probabilities must exceed the other's on its likelier tokens, [R].

    across: what the other side says of the same tokens, 0 where nothing; untold: what it left over.
    """
    alone = (told * (across == 0.0)).sum(axis=0)
    shared = np.maximum(told - across, 0.0).sum(axis=0) - alone
    surplus: FloatArray = shared + np.maximum(alone - np.maximum(untold, 0.0), 0.0)
    return surplus


def _variations(
    now: Sequence[Sequence[TopLogprobs]], before: Sequence[Sequence[TopLogprobs]]
) -> FloatArray:
    """Mean and maximum over each reply's places of the total variation there, [N, 2]."""
    counts = [min(len(new), len(old)) for new, old in zip(now, before, strict=True)]
    cut = zip((*now, *before), (*counts, *counts), strict=True)
    ids, probabilities = _table([place for told, count in cut for place in told[:count]])
    half = sum(counts)
    bounds = total_variation(
        ids[:, :half], probabilities[:, :half], ids[:, half:], probabilities[:, half:]
    )
    firsts = np.cumsum([0, *counts[:-1]])
    means = np.add.reduceat(bounds, firsts) / counts
    return np.column_stack([means, np.maximum.reduceat(bounds, firsts)])


def _table(places: Sequence[TopLogprobs]) -> tuple[FloatArray, FloatArray]:
    """Ids and probabilities told at each place, both [M, R]; tokens told by text are numbered."""
    widest = min(max(map(len, places)), VARIATION_TOKENS)
    told = list(chain.from_iterable(place[:widest] for place in places))
    if isinstance(told[0][0], str):
        codes: dict[object, int] = {}
        told = [(codes.setdefault(token, len(codes)), logprob) for token, logprob in told]
    pairs = np.fromiter(chain.from_iterable(told), dtype=np.float64, count=2 * len(told))
    if np.isnan(pairs).any():
        raise DataError("top_logprobs hold NaN: the stage's logits were not finite.")
    if len(told) < widest * len(places):
        widths = np.array([len(place) for place in places])
        table = np.full((len(places), widest, 2), -np.inf)
        table[np.arange(widest) < widths[:, None]] = pairs.reshape(-1, 2)
        pairs = table
    ids, logprobs = np.ascontiguousarray(pairs.reshape(len(places), widest, 2).T)
    return ids, np.exp(logprobs)


def _alike(new: Sequence[TopLogprobs], old: Sequence[TopLogprobs]) -> bool:
    """Whether both sides told tokens, and in the same way."""
    if not (new and old and new[0] and old[0]):
        return False
    return isinstance(new[0][0][0], str) == isinstance(old[0][0][0], str)


def _sequences(
    replies: Sequence[Reply], before: Before, same_ids: bool
) -> Iterator[tuple[Sequence[object], Sequence[object]] | None]:
    """Each answer and the earlier one: as token ids where these can be compared, else as texts."""
    for new, old in zip(replies, before, strict=True):
        if old is None:
            yield None
        elif same_ids and new.completion.token_ids and old.completion.token_ids:
            yield new.completion.token_ids, old.completion.token_ids
        else:
            yield _text(new), _text(old)


def _common_beginning(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    shorter = min(len(one), len(other))
    return next((place for place, (here, there) in pairs if here != there), shorter)


def _text(reply: Reply) -> str:
    return reply.completion.text
