"""How likely a model holds a text behind another: log P(continuation | context).

Owns how pairs of texts become tokens, what of a long pair is read, and the forwards. The rules are
those of lm-evaluation-harness, so that scores can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from stepwell.errors import LogitsError, PromptError
from stepwell.generate.batch import Progress
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Intervention
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer, precise
from stepwell.text.tokenizer import Tokenizer

POSITIONS_AT_ONCE: Final = 256
"""Positions whose logits are in memory together."""
BATCH_SIZE: Final = 16

Ids = tuple[int, ...]


class Likelihood(NamedTuple):
    """log P of a continuation in nats, and whether each of its tokens is the likeliest there."""

    logprob: float
    is_greedy: bool


class Pair(NamedTuple):
    """Token ids: what stands before, and what is scored. Neither is empty."""

    context: Ids
    continuation: Ids


class _Reading(NamedTuple):
    """The ids of one forward, and how many of them are context."""

    ids: Ids
    num_context: int

    @property
    def num_scored(self) -> int:
        """How many positions at the end predict a token of the continuation."""
        return len(self.ids) + 1 - self.num_context


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The ids of two texts as they stand in the whole; spaces at the border go to the second.

    An empty context is the token that begins a text, or else the one that ends it. Raises
    PromptError where there is neither, or where nothing is left to score.
    """
    if not context.strip():
        first = begin_id(tokenizer)
        ids = tuple(tokenizer.encode(context + continuation))
        pair = Pair(ids[:1], ids[1:]) if ids[:1] == (first,) else Pair((first,), ids)
    else:
        before = tuple(encoded(tokenizer, context.rstrip()))
        pair = Pair(before, tuple(encoded(tokenizer, context + continuation))[len(before) :])
    if not all(pair):
        raise PromptError(
            f"Nothing of {continuation!r} can be scored behind {context[-20:]!r}.",
            fix="give a continuation of at least one token, and a context before it.",
        )
    return pair


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text with what the tokenizer puts around one, unless it begins with it."""
    begin = None if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id)
    return tokenizer.encode(text, special=not (begin and text.startswith(begin)))


def begin_id(tokenizer: Tokenizer) -> int:
    """The token before a text's first: that of its beginning, or else that of its end."""
    found = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if found is None:
        raise PromptError(
            "The tokenizer has no token that begins or ends a text, to stand before an empty"
            " context.",
            fix="give a context of at least one character.",
        )
    return found


@torch.inference_mode()
def log_likelihoods(
    model: Transformer,
    pairs: Sequence[Pair],
    *,
    interventions: Sequence[Intervention] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """The likelihood of each continuation behind its context, in the order of the pairs.

    What does not fit the model is cut from the left of the context. Pairs that differ in their last
    token only are read once. To interventions the context is the prompt. Raises PromptError for a
    continuation that is longer than the model's context, LogitsError for logits that are NaN.
    """
    asked: dict[_Reading, list[int]] = {}
    for number, pair in enumerate(pairs):
        asked.setdefault(_reading(pair, model.config.context_length), []).append(number)
    found: dict[int, Likelihood] = {}
    tokens = 0
    for part in _batches(asked, batch_size):
        for reading, logprob_NV in zip(part, _read(model, part, interventions), strict=True):
            for number in asked[reading]:
                found[number] = _scored(logprob_NV, pairs[number].continuation)
        tokens += sum(len(reading.ids) for reading in part)
        if progress is not None:
            progress.update(len(found), tokens)
    if any(math.isnan(likelihood.logprob) for likelihood in found.values()):
        raise LogitsError("The model's logits are NaN, so that nothing can be measured.")
    return [found[number] for number in range(len(pairs))]


def _reading(pair: Pair, context_length: int) -> _Reading:
    """What is read of a pair: all but its last token, cut from the left."""
    if len(pair.continuation) > context_length:
        raise PromptError(
            f"A continuation has {len(pair.continuation)} tokens, more than the model's context of"
            f" {context_length}.",
            fix="shorten it, or use a model with a longer context.",
        )
    ids = (pair.context + pair.continuation)[-(context_length + 1) : -1]
    return _Reading(ids, len(ids) + 1 - len(pair.continuation))


def _batches(readings: Iterable[_Reading], size: int) -> Iterator[list[_Reading]]:
    """Readings of like lengths together, the longest first: too little memory shows at once."""
    ordered = sorted(readings, key=lambda reading: (-len(reading.ids), reading.ids))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _read(
    model: Transformer, readings: Sequence[_Reading], interventions: Sequence[Intervention]
) -> Iterator[Tensor]:
    """Log-probabilities [N, V], N = num_scored, of each reading, padded on the right."""
    lengths = [len(reading.ids) for reading in readings]
    rows = [[*reading.ids, *[0] * (max(lengths) - len(reading.ids))] for reading in readings]
    ids_BT = torch.tensor(rows, device=model.device)
    prompts = [reading.num_context for reading in readings]
    hooks = Hooks(interventions, prompt_lengths=prompts) if interventions else None
    hidden_BTC = model.hidden(ids_BT, hooks=hooks)
    positions_BT = torch.arange(ids_BT.shape[1], device=model.device).expand_as(ids_BT)
    places = Places(positions_BT, ids_BT, torch.tensor(prompts, device=model.device)[:, None])
    for row, (reading, length) in enumerate(zip(readings, lengths, strict=True)):
        columns = torch.arange(length - reading.num_scored, length, device=model.device)
        parts = [
            _logprobs(model, hidden_BTC, places, torch.full_like(part, row), part, hooks)
            for part in torch.split(columns, POSITIONS_AT_ONCE)
        ]
        yield torch.cat(parts)


def _logprobs(
    model: Transformer,
    hidden_BTC: Tensor,
    places: Places,
    row_N: Tensor,
    column_N: Tensor,
    hooks: Hooks | None,
) -> Tensor:
    """Log-probabilities [N, V] at single positions."""
    hidden_N1C = hidden_BTC[row_N, column_N][:, None]
    logits_N1V = model.logits(hidden_N1C, hooks=hooks, places=places.select(row_N, column_N))
    return precise(logits_N1V[:, 0]).log_softmax(-1)


def _scored(logprob_NV: Tensor, continuation: Ids) -> Likelihood:
    """What the positions, one for each token of the continuation, say of it."""
    chosen_N = torch.tensor(continuation, device=logprob_NV.device)
    logprob = logprob_NV.gather(-1, chosen_N[:, None]).double().sum()
    return Likelihood(float(logprob), bool((logprob_NV.argmax(-1) == chosen_N).all()))
