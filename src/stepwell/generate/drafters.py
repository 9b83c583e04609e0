"""Who drafts: the sequence's own past, or a model with a cache of its own.

Owns what a drafter holds of each sequence. It follows from the sequence whenever it drafts, so that
nobody has to tell a drafter what was accepted, preempted or taken back. Verifies nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from stepwell.generate.draft import Pace, PromptLookup, Seconds
from stepwell.generate.executor import Chunk, Executors
from stepwell.generate.noise import Purpose
from stepwell.generate.sampler import Draft, Sampler
from stepwell.generate.sequence import Ahead, Sequence
from stepwell.generate.verify import num_equal
from stepwell.model.blocks import BLOCK
from stepwell.model.transformer import Transformer

CATCH_UP = 512
"""Tokens of a prompt that a draft model reads at once; until it has read all, it drafts nothing."""
BEHIND = 32
"""With at most this many tokens to read, a draft model drafts after them in the same step."""


class Drafter(Protocol):
    """Proposes tokens for sequences that decode."""

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing of any sequence."""

    def by_pace(self, batch: Iterable[Sequence]) -> dict[Pace, list[Sequence]]:
        """The sequences by what is known of such drafts as each would get now, if any."""

    def ready(self, batch: Iterable[Sequence]) -> list[Sequence]:
        """Those that it can draft for now, after reading on in all of them."""

    def propose(self, lengths: Mapping[Sequence, int]) -> dict[Sequence, Draft]:
        """Drafts of at most these lengths; `ready` comes first."""

    def forget(self, sequence: Sequence) -> None:
        """Free what it holds of a sequence, if anything."""


class LookupDrafter:
    """Drafts what followed the same tokens before.

    How much of a draft stays depends on how many tokens agree, so that each of these numbers has a
    pace of its own: where much agrees much is drafted, and little or nothing elsewhere.
    """

    def __init__(self) -> None:
        self._seconds = Seconds()
        self._paces: defaultdict[int, Pace] = defaultdict(lambda: Pace(seconds=self._seconds))
        self._lookups: defaultdict[Sequence, PromptLookup] = defaultdict(PromptLookup)

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing of any sequence."""
        return not self._lookups

    def by_pace(self, batch: Iterable[Sequence]) -> dict[Pace, list[Sequence]]:
        """Those whose last token was seen before, by how many agree; their past is up to date."""
        groups: defaultdict[Pace, list[Sequence]] = defaultdict(list)
        for sequence in batch:
            lookup = self._lookups[sequence]
            lookup.extend(sequence.since(len(lookup)))
            if agreeing := lookup.match():
                groups[self._paces[agreeing]].append(sequence)
        return groups

    def ready(self, batch: Iterable[Sequence]) -> list[Sequence]:
        """All of them."""
        return list(batch)

    def propose(self, lengths: Mapping[Sequence, int]) -> dict[Sequence, Draft]:
        """What follows the longest match of each."""
        return {each: Draft(self._lookups[each].propose(n)) for each, n in lengths.items()}

    def forget(self, sequence: Sequence) -> None:
        """Drop the index of a sequence."""
        self._lookups.pop(sequence, None)


@dataclass
class _Past:
    """A sequence in a draft model's cache: its first `num_known` tokens, then `ahead`, drafted."""

    row: int
    num_known: int
    ahead: list[int] = field(default_factory=list)
    spoilt: bool = False
    """Whether the model has put out logits that allow no token; it is not asked again."""


class ModelDrafter:
    """Drafts with a model of its own cache, which it puts in eval mode.

    It samples with the target's parameters, lane and noise, so that it says what the target will
    say wherever the two agree; under the rejection rule with noise for drafts. num_blocks bounds
    its cache, and sequences that do not fit get no drafts.
    """

    def __init__(
        self,
        model: Transformer,
        sampler: Sampler,
        *,
        strict: bool,
        max_rows: int,
        num_blocks: int | None,
    ) -> None:
        self._pace = Pace()
        self._sampler = sampler
        self._cache = model.eval().new_cache(max_rows, num_blocks=num_blocks)
        self._executors = Executors(model, self._cache, strict=strict)
        self._pasts: dict[Sequence, _Past] = {}

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing of any sequence."""
        return not self._pasts

    def by_pace(self, batch: Iterable[Sequence]) -> dict[Pace, list[Sequence]]:
        """All of them: what is known of one is known of all."""
        return {self._pace: list(batch)}

    def ready(self, batch: Iterable[Sequence]) -> list[Sequence]:
        """Those that it has read but for the last few tokens, after reading a chunk of the others.

        One that is too long for the cache or the model's context is not ready.
        """
        fitting = [each for each in batch if each.position <= self._cache.context_length]
        return [sequence for sequence in fitting if self._catch_up(sequence)]

    def propose(self, lengths: Mapping[Sequence, int]) -> dict[Sequence, Draft]:
        """Drafts that end early where the answer would, or the context does."""
        lengths = {each: min(n, self._room(each)) for each, n in lengths.items()}
        drafted: dict[Sequence, list[int]] = {each: [] for each in lengths}
        logits: dict[Sequence, list[Tensor]] = {each: [] for each in lengths}
        going = list(lengths) if self._fits(lengths) else []
        while going:
            self._extend(going, drafted, logits)
            going = [
                each
                for each in going
                if not self._pasts[each].spoilt
                and len(drafted[each]) < lengths[each]
                and drafted[each][-1] not in each.handle.stop_ids
            ]
        return {each: Draft(ids, _stacked(logits[each])) for each, ids in drafted.items()}

    def forget(self, sequence: Sequence) -> None:
        """Free the row of a sequence."""
        past = self._pasts.pop(sequence, None)
        if past is not None:
            self._cache.release(past.row)

    def _extend(
        self,
        batch: list[Sequence],
        drafted: dict[Sequence, list[int]],
        logits: dict[Sequence, list[Tensor]],
    ) -> None:
        """Add a token to the draft of each; one whose logits allow none is spoilt."""
        chunks = [self._unread(sequence, drafted[sequence]) for sequence in batch]
        output = self._executors.of(sum(len(each.ids) for each in chunks)).run(chunks)
        for sequence in batch:
            past = self._pasts[sequence]
            past.num_known, past.ahead = sequence.position, drafted[sequence][:]
        places = [Ahead(each, drafted[each], _purpose(each)) for each in batch]
        events = self._sampler.sample(places, *output)
        for sequence, event, logits_V in zip(batch, events, output.logits, strict=True):
            if event is None:
                self._pasts[sequence].spoilt = True
                continue
            drafted[sequence].append(event.token_id)
            if sequence.handle.by_rejection:
                logits[sequence].append(logits_V)

    def _unread(self, sequence: Sequence, drafted: list[int]) -> Chunk:
        """What the model has not read of a sequence and its draft."""
        past = self._pasts[sequence]
        ids = [*sequence.since(past.num_known), *drafted[len(past.ahead) :]]
        return Chunk(past.row, ids, wanted=1)

    def _catch_up(self, sequence: Sequence) -> bool:
        """Whether all but a few tokens of the sequence are read; else a chunk of them is."""
        past = self._follow(sequence)
        if past.spoilt:
            return False
        unread = sequence.since(past.num_known)
        if len(unread) > BEHIND:
            ids = unread[: min(CATCH_UP, len(unread) - 1)]
            if not self._cache.has_room([past.row], [len(ids)]):
                return False
            self._executors.of(len(ids)).run([Chunk(past.row, ids)])
            past.num_known += len(ids)
            self._publish(sequence, past)
        return sequence.position - past.num_known <= BEHIND

    def _follow(self, sequence: Sequence) -> _Past:
        """The sequence's past, rolled back to the tokens that it has come to have."""
        past = self._pasts.get(sequence)
        if past is None:
            past = self._pasts[sequence] = self._begin(sequence)
        stayed = num_equal(past.ahead, sequence.since(past.num_known))
        past.num_known, past.ahead = min(past.num_known + stayed, sequence.position - 1), []
        self._cache.truncate(past.row, past.num_known)
        return past

    def _begin(self, sequence: Sequence) -> _Past:
        """A row for the sequence, with what is known of its prompt from others."""
        row = self._cache.allocate()
        keys = sequence.handle.block_keys[: (sequence.position - 1) // BLOCK]
        return _Past(row, self._cache.adopt(row, keys))

    def _publish(self, sequence: Sequence, past: _Past) -> None:
        full = min(past.num_known, len(sequence.request.prompt_ids)) // BLOCK
        self._cache.publish(past.row, sequence.handle.block_keys[:full])

    def _fits(self, lengths: Mapping[Sequence, int]) -> bool:
        """Whether the cache has room for all that is to be read."""
        pasts = [self._pasts[each] for each in lengths]
        counts = [
            each.position - past.num_known + length - 1
            for (each, length), past in zip(lengths.items(), pasts, strict=True)
        ]
        return self._cache.has_room([past.row for past in pasts], counts)

    def _room(self, sequence: Sequence) -> int:
        """The longest draft that the context allows; its last token is never read."""
        return self._cache.context_length - sequence.position + 1


def _purpose(sequence: Sequence) -> Purpose:
    """What a drafted token's noise is drawn for."""
    return Purpose.DRAFT if sequence.handle.by_rejection else Purpose.SAMPLE


def _stacked(logits: list[Tensor]) -> Tensor | None:
    return torch.stack(logits) if logits else None
