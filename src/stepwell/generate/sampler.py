"""Sampling for the engine's rows: who shares parameters, whose history is needed, who failed.

Between sequences and the pure functions of `sampling`: makes addresses and histories, groups rows, and
keeps a row whose logits are not finite from harming the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Series

from torch import Tensor

from stepwell.generate.noise import Address
from stepwell.generate.request import SamplingParams, TokenEvent
from stepwell.generate.sampling import History, LogitsError, log_softmax, process, sample
from stepwell.generate.sequence import Sequence


def sample_rows(
    batch: Series[Sequence],
    logits_BV: Tensor,
    *,
    lane: Callable[[], int],
    newline_ids: Series[int] = (),
) -> list[TokenEvent | None]:
    """The next token of each sequence, in order; None where a row has no finite logit to choose.

    logits are float32, one row a sequence, as the model gave them. `lane` is asked only where noise
    is drawn.
    """
    groups: dict[int, list[int]] = {}
    for index, sequence in enumerate(batch):
        groups.setdefault(id(sequence.request.sampling), []).append(index)
    events: list[TokenEvent | None] = [None] * len(batch)
    for rows in groups.values():
        whole = len(rows) == len(batch)
        chosen = _sample_alike(
            [batch[row] for row in rows],
            logits_BV if whole else logits_BV[rows],
            lane,
            newline_ids,
        )
        for row, event in zip(rows, chosen, strict=True):
            events[row] = event
    return events


def _sample_alike(
    batch: Series[Sequence],
    logits_BV: Tensor,
    lane: Callable[[], int],
    newline_ids: Series[int],
) -> list[TokenEvent | None]:
    """`sample_rows` for sequences that share their sampling parameters."""
    params = batch[0].request.sampling
    history = _histories(batch) if needs_history(params) else ()
    eos_ids = tuple(batch[0].handle.stop_ids)
    processed = process(logits_BV, params, history, eos_ids=eos_ids, newline_ids=newline_ids)
    try:
        ids_B = sample(processed, params, [] if params.greedy else _addresses(batch, lane()))
    except LogitsError as error:
        return _without(error.rows, batch, logits_BV, lane, newline_ids)
    return _events(batch, logits_BV, ids_B, params)


def _without(
    failed: Series[int],
    batch: Series[Sequence],
    logits_BV: Tensor,
    lane: Callable[[], int],
    newline_ids: Series[int],
) -> list[TokenEvent | None]:
    """The sound rows' tokens, with None at the failed ones."""
    sound = [row for row in range(len(batch)) if row not in failed]
    events: list[TokenEvent | None] = [None] * len(batch)
    if sound:
        chosen = _sample_alike([batch[row] for row in sound], logits_BV[sound], lane, newline_ids)
        for row, event in zip(sound, chosen, strict=True):
            events[row] = event
    return events


def _events(
    batch: Series[Sequence], logits_BV: Tensor, ids_B: Tensor, params: SamplingParams
) -> list[TokenEvent | None]:
    """The chosen tokens as events, with the model's own log-probabilities where asked for."""
    ids = ids_B.tolist()
    if params.logprobs is None:
        return [TokenEvent(row.choice, token) for row, token in zip(batch, ids, strict=True)]
    raw_BV = log_softmax(logits_BV)
    chosen = raw_BV.gather(1, ids_B[:, None])[:, 0].tolist()
    if not params.logprobs:
        top: list[tuple[tuple[int, float], ...]] = [()] * len(batch)
    else:
        values_BK, tokens_BK = raw_BV.topk(min(params.logprobs, raw_BV.shape[1]))
        top = [
            tuple(zip(tokens, values, strict=True))
            for tokens, values in zip(tokens_BK.tolist(), values_BK.tolist(), strict=True)
        ]
    return [
        TokenEvent(row.choice, token, logprob, likeliest)
        for row, token, logprob, likeliest in zip(batch, ids, chosen, top, strict=True)
    ]


def _addresses(batch: Series[Sequence], lane: int) -> list[Address]:
    """Where each row's noise lies."""
    return [
        Address(row.request.sampling.seed, lane, row.choice, row.position) for row in batch
    ]


def _histories(batch: Series[Sequence]) -> list[History]:
    return [History.of(row.request.prompt_ids, row.generated) for row in batch]


def needs_history(params: SamplingParams) -> bool:
    """Whether a parameter looks at the tokens before, so that they must be put into tensors."""
    return bool(
        params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
        or params.no_repeat_ngram_size
        or params.forced_tokens
        or params.min_new_tokens
        or params.newline_run_limit
    )
