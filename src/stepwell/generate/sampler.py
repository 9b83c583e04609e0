"""Sampling for the engine's rows: who can be sampled together, what came before, who failed.

Between sequences and the pure functions of `sampling` and `verify`: makes addresses and histories,
groups rows, and keeps a row whose logits are not finite from harming the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from collections.abc import Sequence as Series
from typing import NamedTuple

import torch
from torch import Tensor

from stepwell.errors import LogitsError
from stepwell.generate.noise import Address
from stepwell.generate.request import SamplingParams, TokenEvent
from stepwell.generate.sampling import log_softmax, process, sample
from stepwell.generate.sequence import Ahead, Place, Sequence
from stepwell.generate.verify import NO_TOKEN, num_equal, verify_by_rejection


class Draft(NamedTuple):
    """Tokens that may come next; logits [k, V] are what a model drew them from, where it did.

    Those are float32 and as the model gave them, and needed by the rejection rule alone.
    """

    ids: Series[int] = ()
    logits: Tensor | None = None


NO_DRAFT = Draft()
Events = list[TokenEvent | None]
"""Tokens one after another; None after the last of them where the logits allow no other."""


class Sampler:
    """Chooses the next tokens of each sequence from its logits.

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
        batch: Series[Place],
        logits_BV: Tensor,
        likeliest: Series[int | None] | None = None,
    ) -> Events:
        """The next token at each place, in order; None where a row's logits allow none.

        logits are float32, one row a place, as the model gave them. likeliest: the lowest id with
        the highest logit of each row, where it is known; None for rows that are not finite.
        """
        if likeliest is not None and all(row.handle.takes_likeliest for row in batch):
            return [
                None if token is None else TokenEvent(row.choice, token)
                for row, token in zip(batch, likeliest, strict=True)
            ]
        groups = _alike(batch)
        if len(groups) == 1:
            return self._sample_alike(batch, logits_BV)
        return self._sample_each(groups, batch, logits_BV)

    def verify(
        self,
        batch: Series[Sequence],
        drafts: Mapping[Sequence, Draft],
        logits_NV: Tensor,
        likeliest: Series[int | None] | None = None,
    ) -> list[Events]:
        """What comes next in each sequence: the tokens of its draft that stay, then one more.

        logits and likeliest as for `sample`: for each sequence a row for every token of its draft,
        if it has one, and one for the token after the last.
        """
        if any(row.handle.by_rejection for row in batch):
            return self._verify_each(batch, drafts, logits_NV)
        return self._verify_by_equality(batch, drafts, logits_NV, likeliest)

    def _verify_each(
        self, batch: Series[Sequence], drafts: Mapping[Sequence, Draft], logits_NV: Tensor
    ) -> list[Events]:
        """`verify` row by row, each by its own rule, which for a greedy choice is equality."""
        counts = [1 + len(drafts.get(row, NO_DRAFT).ids) for row in batch]
        found: list[Events] = []
        for row, rows_KV in zip(batch, torch.split(logits_NV, counts), strict=True):
            if row.handle.by_rejection and not row.request.sampling.greedy:
                found.append(self._verify_by_rejection(row, drafts.get(row, NO_DRAFT), rows_KV))
            else:
                found += self._verify_by_equality([row], drafts, rows_KV)
        return found

    def _verify_by_equality(
        self,
        batch: Series[Sequence],
        drafts: Mapping[Sequence, Draft],
        logits_NV: Tensor,
        likeliest: Series[int | None] | None = None,
    ) -> list[Events]:
        """`verify` by what the model samples itself, with the noise of plain sampling."""
        if not drafts:
            return [[event] for event in self.sample(batch, logits_NV, likeliest)]
        drafted = [drafts.get(row, NO_DRAFT).ids for row in batch]
        pairs = zip(batch, drafted, strict=True)
        places = [place for row, ids in pairs for place in _places(row, ids)]
        sampled = iter(self.sample(places, logits_NV, likeliest))
        return [_kept(ids, itertools.islice(sampled, len(ids) + 1)) for ids in drafted]

    def _verify_by_rejection(self, row: Sequence, draft: Draft, logits_KV: Tensor) -> Events:
        """`verify` of one sequence by the rejection rule."""
        places = _places(row, draft.ids)
        drawn = draft.logits
        verified = verify_by_rejection(
            self._process(places, logits_KV),
            [draft.ids],
            row.request.sampling,
            self._addresses([row]),
            None if drawn is None else self._process(places[:-1], drawn.to(logits_KV.device)),
        )
        count, last = int(verified.num_accepted), int(verified.next_ids)
        ids = [*draft.ids[:count], *([] if last == NO_TOKEN else [last])]
        events = _events(
            places[: len(ids)],
            logits_KV[: len(ids)],
            torch.tensor(ids, dtype=torch.int64, device=logits_KV.device),
            row.request.sampling.logprobs,
        )
        return [*events, None] if last == NO_TOKEN else [*events]

    def _sample_each(
        self, groups: Series[Series[int]], batch: Series[Place], logits_BV: Tensor
    ) -> Events:
        """The tokens of rows that are sampled group by group; None for rows in no group."""
        events: Events = [None] * len(batch)
        for rows in groups:
            chosen = self._sample_alike([batch[row] for row in rows], logits_BV[rows])
            for row, event in zip(rows, chosen, strict=True):
                events[row] = event
        return events

    def _sample_alike(self, batch: Series[Place], logits_BV: Tensor) -> Events:
        """`sample` at places whose parameters treat logits in the same way."""
        params = batch[0].request.sampling
        processed_BV = self._process(batch, logits_BV)
        try:
            ids_B = sample(processed_BV, params, [] if params.greedy else self._addresses(batch))
        except LogitsError as error:
            sound = [row for row in range(len(batch)) if row not in error.rows]
            return self._sample_each([sound] if sound else [], batch, logits_BV)
        return list(_events(batch, logits_BV, ids_B, params.logprobs))

    def _process(self, batch: Series[Place], logits_BV: Tensor) -> Tensor:
        """What the parameters of such places make of their logits."""
        params = batch[0].request.sampling
        return process(
            logits_BV,
            params,
            [row.history() for row in batch] if _looks_back(params) else (),
            eos_ids=tuple(batch[0].handle.stop_ids),
            newline_ids=self._newline_ids,
            think_ids=self._think_ids,
        )

    def _addresses(self, batch: Series[Place]) -> list[Address]:
        """Where each row's noise lies."""
        lane = self._lane()
        return [
            Address(row.request.sampling.seed, lane, row.choice, row.position, row.purpose)
            for row in batch
        ]


def _alike(batch: Series[Place]) -> list[list[int]]:
    """The rows of a batch, those together whose parameters treat logits in the same way."""
    groups: dict[Hashable, list[int]] = {}
    for index, row in enumerate(batch):
        groups.setdefault(row.handle.sampling_key, []).append(index)
    return list(groups.values())


def _places(row: Sequence, drafted: Series[int]) -> list[Ahead]:
    """Where the tokens of a draft come, and the one after them."""
    return [Ahead(row, drafted[:count]) for count in range(len(drafted) + 1)]


def _kept(drafted: Series[int], sampled: Iterator[TokenEvent | None]) -> Events:
    """The tokens sampled up to the first that was drafted otherwise."""
    events = list(sampled)
    own = [NO_TOKEN if event is None else event.token_id for event in events]
    return events[: num_equal(drafted, own) + 1]


def _events(
    batch: Series[Place], logits_BV: Tensor, ids_B: Tensor, num_likeliest: int | None
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
