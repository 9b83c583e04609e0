"""Sampling for the engine's rows: who can be sampled together, what came before, who failed.

Between sequences and the pure functions of `sampling`: makes addresses and histories, groups rows,
and keeps a row whose logits are not finite from harming the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Series

import torch
from torch import Tensor

from stepwell.errors import LogitsError
from stepwell.generate.noise import Address
from stepwell.generate.request import SamplingParams, TokenEvent
from stepwell.generate.sampling import History, log_softmax, process, sample
from stepwell.generate.sequence import Sequence


class Sampler:
    """Chooses the next token of each sequence from its logits.

    lane: asked for the noise's lane, and only where noise is drawn. newline_ids: what the guard
    against runs of newlines counts. think_ids: think_start and think_end, or nothing.
    """

    def __init__(
        self,
        lane: Callable[[], int],
        *,
        newline_ids: Series[int] = (),
        think_ids: Series[int] = (),
    ) -> None:
        self._lane = lane
        self._newline_ids, self._think_ids = newline_ids, think_ids

    def sample(
        self,
        batch: Series[Sequence],
        logits_BV: Tensor,
        likeliest: Series[int | None] | None = None,
    ) -> list[TokenEvent | None]:
        """The next token of each sequence, in order; None where a row's logits allow none.

        logits are float32, one row a sequence, as the model gave them. likeliest: the lowest id with
        the highest logit of each row, where it is known; None for rows that are not finite.
        """
        if likeliest is not None and all(row.handle.takes_likeliest for row in batch):
            return [
                None if token is None else TokenEvent(row.choice, token)
                for row, token in zip(batch, likeliest, strict=True)
            ]
        groups: dict[Hashable, list[int]] = {}
        for index, sequence in enumerate(batch):
            groups.setdefault(sequence.handle.sampling_key, []).append(index)
        if len(groups) == 1:
            return self._sample_alike(batch, logits_BV)
        return self._sample_each(list(groups.values()), batch, logits_BV)

    def _sample_each(
        self, groups: Series[Series[int]], batch: Series[Sequence], logits_BV: Tensor
    ) -> list[TokenEvent | None]:
        """The tokens of rows that are sampled group by group; None for rows in no group."""
        events: list[TokenEvent | None] = [None] * len(batch)
        for rows in groups:
            chosen = self._sample_alike([batch[row] for row in rows], logits_BV[rows])
            for row, event in zip(rows, chosen, strict=True):
                events[row] = event
        return events

    def _sample_alike(self, batch: Series[Sequence], logits_BV: Tensor) -> list[TokenEvent | None]:
        """`sample` for sequences whose parameters treat logits in the same way."""
        params = batch[0].request.sampling
        processed_BV = process(
            logits_BV,
            params,
            [_history(row) for row in batch] if _looks_back(params) else (),
            eos_ids=tuple(batch[0].handle.stop_ids),
            newline_ids=self._newline_ids,
            think_ids=self._think_ids,
        )
        try:
            ids_B = sample(processed_BV, params, [] if params.greedy else self._addresses(batch))
        except LogitsError as error:
            sound = [row for row in range(len(batch)) if row not in error.rows]
            return self._sample_each([sound] if sound else [], batch, logits_BV)
        return list(_events(batch, logits_BV, ids_B, params.logprobs))

    def _addresses(self, batch: Series[Sequence]) -> list[Address]:
        """Where each row's noise lies."""
        lane = self._lane()
        return [Address(row.request.sampling.seed, lane, row.choice, row.position) for row in batch]


def _events(
    batch: Series[Sequence], logits_BV: Tensor, ids_B: Tensor, num_likeliest: int | None
) -> list[TokenEvent]:
    """The chosen tokens as events, with the model's own log-probabilities where asked for."""
    ids = ids_B.tolist()
    if num_likeliest is None:
        return [TokenEvent(row.choice, token) for row, token in zip(batch, ids, strict=True)]
    raw_BV = log_softmax(logits_BV)
    chosen = raw_BV.gather(1, ids_B[:, None])[:, 0].tolist()
    likeliest = _likeliest(raw_BV, num_likeliest) if num_likeliest else [()] * len(batch)
    return [
        TokenEvent(row.choice, token, logprob, top)
        for row, token, logprob, top in zip(batch, ids, chosen, likeliest, strict=True)
    ]


def _likeliest(raw_BV: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Each row's likeliest tokens with their log-probabilities, most likely first."""
    top = raw_BV.topk(min(count, raw_BV.shape[1]))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [tuple(zip(tokens, values, strict=True)) for tokens, values in rows]


def _looks_back(params: SamplingParams) -> bool:
    """Whether a parameter depends on the tokens before, so that they must be put into tensors."""
    return bool(
        params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
        or params.no_repeat_ngram_size
        or params.newline_run_limit
        or params.min_new_tokens
        or params.think_budget
        or params.forced_tokens
    )


def _history(row: Sequence) -> History:
    """The row's tokens so far: a view of its buffer, which takes the token that came last."""
    num_prompt = len(row.request.prompt_ids)
    if row.buffer is None:
        row.buffer = torch.empty(num_prompt + row.handle.room, dtype=torch.int64)
        row.buffer[:num_prompt] = torch.tensor(row.request.prompt_ids)
    if row.generated:
        row.buffer[row.position - 1] = row.generated[-1]
    return History(row.buffer[: row.position], num_prompt)
