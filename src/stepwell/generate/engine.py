"""The inference engine: requests of token ids in, events out, all rows advanced together.

A step admits waiting sequences, then runs forwards over prompts (in chunks) and over the rows that
decode, samples where a row's tokens have all been computed, and ends what is finished. A row that
decodes may carry a draft: then several tokens are verified in that forward, and its cache is rolled
back to those that stay. Rows finish and are replaced at any step. The noise of a token has an
address, so company, order and drafts move no choice. What goes wrong with one request ends that
request: the loop and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from functools import cached_property, partial

import torch

from stepwell.errors import ConfigError, LogitsError
from stepwell.generate.executor import Chunk, Executors
from stepwell.generate.finished_draft import FinishedDraft
from stepwell.generate.limits import Limits
from stepwell.generate.noise import lane_of
from stepwell.generate.pins import Pins
from stepwell.generate.request import FinishReason, Request
from stepwell.generate.row_hooks import NO_HOOKS, RowHooks
from stepwell.generate.sampler import Draft, Events, Sampler
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.sequence import Handle, Sequence
from stepwell.generate.speculative import DraftRule, DraftSource, Speculation
from stepwell.generate.tape import Tape
from stepwell.model.blocks import BLOCK
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.interventions import Intervention
from stepwell.model.transformer import Transformer

PREFILL_CHUNK = 512
PREFILL_BUDGET = 8192

logger = logging.getLogger(__name__)


class InferenceEngine:
    """Generates for many requests at once with one model, which it puts in eval mode.

    Nothing runs by itself: iterating over a handle, or calling `step`, drives all requests forward.
    A request that fails ends with the reason "error" and the error in its last event; a step that
    is interrupted raises, and all requests can go on from where they were.

    strict: a request's tokens and log-probabilities have the same bits in every company, however
    its prompt was cut, cached or computed again, with drafts and without; on a CPU only.
    `kv_cache_bytes` bounds what keys and values may take: where it runs out, the youngest request
    waits and is computed again. A draft model's own come on top, for at most as many tokens.
    `pins` hold keys and values of texts that are to be gone on from.
    `eos_ids` end an answer (the model's own by default), `newline_ids` are what the newline-run
    guard counts, `think_ids` are those of think_start and think_end, in this order.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        strict: bool = False,
        max_rows: int = 64,
        kv_cache_bytes: int | None = None,
        eos_ids: Iterable[int] | None = None,
        newline_ids: Iterable[int] | None = None,
        think_ids: Iterable[int] = (),
    ) -> None:
        self.model = model.eval()
        self.strict, self.max_rows = strict, _checked(max_rows)
        self.eos_ids = frozenset(model.config.eos_ids if eos_ids is None else eos_ids)
        self.newline_ids = None if newline_ids is None else tuple(newline_ids)
        self.think_ids = tuple(think_ids)
        self._sampler = Sampler(
            lambda: self.lane, newline_ids=self.newline_ids or (), think_ids=self.think_ids
        )
        num_blocks = _num_blocks(model, kv_cache_bytes)
        self._cache = model.new_cache(max_rows, num_blocks=num_blocks)
        self._limits = Limits(
            model.config,
            self._cache.blocks.total * BLOCK,
            self.eos_ids,
            self.newline_ids,
            self.think_ids,
        )
        self._executors = Executors(model, self._cache, strict=strict)
        self._speculation = Speculation(
            self._sampler,
            vocab_size=model.config.vocab_size,
            strict=strict,
            max_rows=max_rows,
            num_blocks=num_blocks,
        )
        self.pins = Pins(self._cache)
        self._scheduler = Scheduler(self._cache, self._speculation.forget, self.pins.spare)
        self._deadlines: set[Handle] = set()
        self._most_tokens = PREFILL_BUDGET

    @cached_property
    def lane(self) -> int:
        """The lane of the noise: that of the model which samples, hashed when first needed."""
        return lane_of(model_fingerprint(self.model))

    @property
    def num_free_rows(self) -> int:
        """Rows of the cache that no sequence holds."""
        return self._cache.num_free

    @property
    def num_preempted(self) -> int:
        """How often a sequence had to give its place in the cache to an older one."""
        return self._scheduler.num_preempted

    def check(
        self,
        request: Request,
        *,
        draft: DraftSource | None = None,
        draft_rule: DraftRule = "equality",
    ) -> None:
        """Raises PromptError, HookError, CacheError or ConfigError for what cannot be run here."""
        self._limits.check(request)
        self._speculation.check(draft, draft_rule)

    def submit(
        self,
        request: Request,
        *,
        draft: DraftSource | None = None,
        draft_rule: DraftRule = "equality",
    ) -> Handle:
        """Queue a request; raises as `check` does.

        draft: a smaller model of the same vocabulary, a FinishedDraft (a whole answer), or "lookup"
        (the request's own text so far), that proposes tokens; the model verifies several in one
        forward. By the rule "equality" the answer is the same as without; "rejection" keeps its
        distribution only, and may keep more of a draft. Strict mode refuses it.
        """
        self.check(request, draft=draft, draft_rule=draft_rule)
        drafter = self._speculation.drafter(draft)
        limit, active = request.deadline_s, self._active(request)
        handle = Handle(
            request,
            interventions=active,
            new_hooks=partial(self._row_hooks, request, active),
            room=self._limits.room(request),
            stop_ids=frozenset() if request.sampling.ignore_eos else self.eos_ids,
            drive=self.step,
            finish=self._finish,
            deadline=None if limit is None else time.monotonic() + limit,
            drafter=drafter,
            finished_draft=draft if isinstance(draft, FinishedDraft) else None,
            by_rejection=drafter is not None and draft_rule == "rejection",
        )
        if handle.deadline is not None:
            self._deadlines.add(handle)
        for sequence in handle.sequences:
            self._scheduler.add(sequence)
        return handle

    def _active(self, request: Request) -> tuple[Intervention, ...]:
        """The interventions that change something: a request without them runs like any other."""
        return tuple(each for each in request.interventions if not each.is_idle)

    def _row_hooks(self, request: Request, active: tuple[Intervention, ...]) -> RowHooks:
        """What is read and changed in the row of one choice of a request."""
        if not active and request.record is None:
            return NO_HOOKS
        num_prompt, record = len(request.prompt_ids), request.record
        tape = None if record is None else Tape(record, self.model.config, num_prompt)
        return RowHooks([edit for each in active for edit in each.edits], num_prompt, tape)

    def forget_prompts(self) -> None:
        """Drop what is kept of prompts that do not run: the next request finds nothing of them."""
        self.pins.clear()
        self._cache.blocks.forget()

    def step(self) -> list[Handle]:
        """Advance every running sequence: admit, prefill a chunk, decode one token.

        Returns the requests that moved, each once, in the order in which they were admitted.
        """
        late = self._end_late()
        self._scheduler.admit()
        moved = dict.fromkeys([*late, *(each.handle for each in self._scheduler.running)])
        with torch.inference_mode():
            for batch in self._batches():
                self._advance(batch)
        return list(moved)

    def _end_late(self) -> list[Handle]:
        """End the requests whose time is up."""
        if not self._deadlines:
            return []
        now = time.monotonic()
        late = [handle for handle in self._deadlines if handle.deadline <= now]  # type: ignore[operator]
        for handle in late:
            self._deadlines.discard(handle)
            open_ones = [each for each in handle.sequences if each.finish_reason is None]
            self._finish(dict.fromkeys(open_ones, "timeout"))
        return late

    def _batches(self) -> list[list[Sequence]]:
        """The forwards of this step: prompts apart from single tokens."""
        running = self._scheduler.running
        prompts = [row for row in running if len(row.pending) > 1]
        decoding = [row for row in running if len(row.pending) == 1]
        return [batch for batch in (_within_budget(prompts, self._most_tokens), decoding) if batch]

    def _advance(self, batch: list[Sequence]) -> None:
        """Run a batch. What fails is run again in halves, until the one is found that fails."""
        counts = [_next_count(sequence) for sequence in batch]
        batch = self._scheduler.fit(batch, counts)
        if not batch:
            return
        batch.sort(key=lambda sequence: sequence.row)
        try:
            self._forward(batch)
        except Exception as error:
            if len(batch) == 1:
                self._finish({batch[0]: "error"}, {batch[0]: error})
                return
            if _is_out_of_memory(error):
                self._note_out_of_memory(len(batch))
            middle = len(batch) // 2
            self._advance(batch[:middle])
            self._advance(batch[middle:])

    def _forward(self, batch: list[Sequence]) -> None:
        """Run pending tokens and drafts of a batch; sample where a row has none left."""
        decodes = len(batch[0].pending) == 1
        drafts = self._propose(batch, decodes=decodes)
        chunks = [_chunk(each, drafts.get(each)) for each in batch]
        begun = time.perf_counter()
        sampled = self._run(batch, chunks, drafts)
        if decodes:
            self._speculation.observe(sampled, drafts, time.perf_counter() - begun)
        for sequence, chunk in zip(batch, chunks, strict=True):
            rejected = chunk.wanted - len(sampled.get(sequence, ()))
            if rejected:
                sequence.rejected += rejected
                self._cache.truncate(sequence.row, self._cache.length(sequence.row) - rejected)
            self._computed(sequence, len(chunk.ids) - rejected)
        self._take(sampled)

    def _propose(self, batch: list[Sequence], *, decodes: bool) -> dict[Sequence, Draft]:
        """Drafts for rows whose next token is due, while the cache has room for all of them."""
        due = [each for each in batch if _next_count(each) == len(each.pending)]
        drafts = self._speculation.propose(due) if decodes else self._speculation.open(due)
        if not drafts:
            return {}
        counts = [
            _next_count(each) + (len(drafts[each].ids) if each in drafts else 0) for each in batch
        ]
        return drafts if self._cache.has_room([each.row for each in batch], counts) else {}

    def _run(
        self, batch: list[Sequence], chunks: list[Chunk], drafts: Mapping[Sequence, Draft]
    ) -> dict[Sequence, Events]:
        """What comes next where logits are wanted. Raises with the cache as it was before."""
        starts = [self._cache.length(sequence.row) for sequence in batch]
        ready = [row for row, chunk in zip(batch, chunks, strict=True) if chunk.wanted]
        executor = self._executors.of(sum(len(chunk.ids) for chunk in chunks))
        try:
            output = executor.run(chunks)
            sampled = self._sampler.verify(ready, drafts, *output) if ready else []
        except BaseException:  # also an interrupt: the step can then be taken again
            for sequence, start in zip(batch, starts, strict=True):
                self._cache.truncate(sequence.row, start)
            raise
        for sequence in batch:
            sequence.executors.add(executor.name)
        return dict(zip(ready, sampled, strict=True))

    def _computed(self, sequence: Sequence, count: int) -> None:
        """Note that the next `count` pending tokens are in the cache; share full prompt blocks."""
        sequence.pending = sequence.pending[count:]
        prompt = len(sequence.request.prompt_ids)
        end = self._cache.length(sequence.row)
        if prompt >= BLOCK and end - count < prompt:
            full = min(prompt, end) // BLOCK
            self._cache.publish(sequence.row, sequence.handle.block_keys[:full])

    def _take(self, sampled: Mapping[Sequence, Events]) -> None:
        """Hand out what was sampled, and end the choices that are over."""
        ended: dict[Sequence, FinishReason] = {}
        errors: dict[Sequence, Exception] = {}
        for sequence, events in sampled.items():
            for place, event in enumerate(events, start=1):
                reason = "error" if event is None else sequence.take(event)
                sequence.accepted += place < len(events)
                if event is None:
                    errors[sequence] = _no_token(sequence)
                if reason is not None:
                    ended[sequence] = reason
                    break
        if ended:
            self._finish(ended, errors)

    def _finish(
        self,
        ended: dict[Sequence, FinishReason],
        errors: dict[Sequence, Exception] | None = None,
    ) -> None:
        """End sequences, free what they hold and report it."""
        for sequence, reason in ended.items():
            if reason != "error":  # what went wrong must not be found
                self._share_answer(sequence)
        self._scheduler.end(list(ended))
        for sequence, reason in ended.items():
            sequence.handle.finished(sequence, reason, (errors or {}).get(sequence))
            if sequence.handle.is_finished:
                self._deadlines.discard(sequence.handle)

    def _share_answer(self, sequence: Sequence) -> None:
        """Let the answer's full blocks be found too: with them a conversation goes on."""
        length = self._cache.length(sequence.row) if sequence.row >= 0 else 0
        if length // BLOCK > len(sequence.handle.block_keys):
            ids = sequence.since(0)[:length]
            self._cache.publish(sequence.row, sequence.handle.keys_of(ids))

    def _note_out_of_memory(self, rows: int) -> None:
        self._most_tokens = max(1, self._most_tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "Out of memory with %d rows: going on with half of them. What also helps: fewer rows"
            " (max_rows), 8-bit weights, a smaller kv_cache_bytes, or the CPU.",
            rows,
        )


def _checked(max_rows: int) -> int:
    if max_rows < 1:
        raise ConfigError(f"max_rows is {max_rows}, expected 1 or more.")
    return max_rows


def _num_blocks(model: Transformer, kv_cache_bytes: int | None) -> int | None:
    """The number of blocks of keys and values that so many bytes hold; None for no bound."""
    if kv_cache_bytes is None:
        return None
    config = model.config
    values = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    block_bytes = BLOCK * values * model.dtype.itemsize
    if kv_cache_bytes < block_bytes:
        raise ConfigError(
            f"kv_cache_bytes is {kv_cache_bytes}, but one block of {BLOCK} tokens takes"
            f" {block_bytes}.",
            fix=f"allow {block_bytes} or more.",
        )
    return kv_cache_bytes // block_bytes


def _chunk(sequence: Sequence, draft: Draft | None) -> Chunk:
    """The next tokens of a sequence to compute; logits are wanted from the last of its own on."""
    ids, hooks = sequence.pending[:PREFILL_CHUNK], sequence.hooks
    wanted = int(len(ids) == len(sequence.pending))
    if draft is not None:
        ids, wanted = [*ids, *draft.ids], 1 + len(draft.ids)
    start = sequence.position - len(sequence.pending)
    return Chunk(sequence.row, ids, wanted, hooks, hooks.num_logits(ids, start))


def _no_token(sequence: Sequence) -> LogitsError:
    return LogitsError(
        f"No token can follow the first {len(sequence.generated)} of the answer: the model put"
        " out NaN or infinity, or the sampling parameters rule out every token.",
        fix="check weights and interventions, banned_tokens and no_repeat_ngram_size.",
        rows=(0,),
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _within_budget(prompts: list[Sequence], budget: int) -> list[Sequence]:
    """As many of the prompts as one step should read; at least one where there are any."""
    tokens = 0
    for taken, sequence in enumerate(prompts):
        tokens += _next_count(sequence)
        if taken and tokens > budget:
            return prompts[:taken]
    return prompts


def _next_count(sequence: Sequence) -> int:
    """How many of its tokens the next forward computes."""
    return min(len(sequence.pending), PREFILL_CHUNK)
