"""The inference engine: requests of token ids in, events out, all rows advanced together.

A step admits waiting sequences to free cache rows, then runs one forward over prompts (in chunks,
padded on the right) and one over the rows that decode a single token each. Rows finish and are
replaced at any step. The noise of a token has an address, so company and order move no choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Series
from functools import cached_property

import torch
from torch import Tensor

from stepwell.errors import ConfigError, HookError, PromptError
from stepwell.generate.noise import lane_of
from stepwell.generate.request import FinishReason, Request, SamplingParams
from stepwell.generate.sampler import Sampler
from stepwell.generate.sequence import Handle, Sequence
from stepwell.model.cache import CacheView
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.hooks import Hooks, Intervention
from stepwell.model.transformer import Transformer

PREFILL_CHUNK = 512
PREFILL_BUDGET = 8192


class InferenceEngine:
    """Generates for many requests at once with one model, which it puts in eval mode.

    Nothing runs by itself: iterating over a handle, or calling `step`, drives all requests forward.
    A step that fails or is interrupted raises; those requests can go on from where they were.
    `kv_cache_bytes` lowers `max_rows` to what fits when every row fills the context. `eos_ids` end
    an answer (the model's own by default), `newline_ids` are what the newline-run guard counts,
    `think_ids` are those of think_start and think_end, in this order.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        max_rows: int = 32,
        kv_cache_bytes: int | None = None,
        eos_ids: Iterable[int] | None = None,
        newline_ids: Iterable[int] | None = None,
        think_ids: Iterable[int] = (),
    ) -> None:
        self.model = model.eval()
        self.max_rows = _rows_within(model, max_rows, kv_cache_bytes)
        self.eos_ids = frozenset(model.config.eos_ids if eos_ids is None else eos_ids)
        self.newline_ids = None if newline_ids is None else tuple(newline_ids)
        self.think_ids = tuple(think_ids)
        special = (*self.eos_ids, *(self.newline_ids or ()), *self.think_ids)
        self._check_ids(special, "end-of-sequence, newline and think tokens")
        self._sampler = Sampler(
            lambda: self.lane, newline_ids=self.newline_ids or (), think_ids=self.think_ids
        )
        self._cache = model.new_cache(self.max_rows)
        self._waiting: OrderedDict[Sequence, None] = OrderedDict()
        self._running: dict[Sequence, None] = {}

    @cached_property
    def lane(self) -> int:
        """The lane of the noise: that of the model which samples, hashed when first needed."""
        return lane_of(model_fingerprint(self.model))

    @property
    def num_free_rows(self) -> int:
        """Rows of the cache that no sequence holds."""
        return self._cache.num_free

    def check(self, request: Request) -> None:
        """Raises PromptError, HookError or ConfigError where this engine cannot run the request."""
        for intervention in request.interventions:
            if not isinstance(intervention, Intervention):
                kind = type(intervention).__name__
                raise HookError(f"interventions is a list of interventions, {kind} is none.")
            intervention.check(self.model.config)
        self._check_prompt(request.prompt_ids)
        self._check_sampling(request.sampling)

    def submit(self, request: Request) -> Handle:
        """Queue a request; raises as `check` does."""
        self.check(request)
        room = self.model.config.context_length - len(request.prompt_ids)
        handle = Handle(
            request,
            room=min(request.sampling.max_new_tokens, room),
            stop_ids=frozenset() if request.sampling.ignore_eos else self.eos_ids,
            drive=self.step,
            finish=self._finish,
        )
        self._waiting.update(dict.fromkeys(handle.sequences))
        return handle

    def step(self) -> list[Handle]:
        """Advance every running sequence: admit, prefill a chunk, decode one token.

        Returns the requests that moved, each once, in the order in which they were admitted.
        """
        self._admit()
        moved = list(dict.fromkeys(sequence.handle for sequence in self._running))
        with torch.inference_mode():
            for batch in self._batches():
                self._forward(batch)
        return moved

    def _check_prompt(self, prompt_ids: Series[int]) -> None:
        context_length = self.model.config.context_length
        if len(prompt_ids) >= context_length:
            raise PromptError(
                f"The prompt has {len(prompt_ids)} tokens, but the model's context holds"
                f" {context_length} and the answer needs one of them.",
                fix="shorten the prompt, or use a model with a longer context.",
            )
        vocab_size = self.model.config.vocab_size
        foreign = [token for token in prompt_ids if not 0 <= token < vocab_size]
        if foreign:
            raise PromptError(
                f"Token id {foreign[0]} is not in the model's vocabulary of {vocab_size}.",
                fix="encode the prompt with the model's own tokenizer.",
            )

    def _check_sampling(self, params: SamplingParams) -> None:
        self._check_ids(params.banned_tokens, "banned_tokens")
        self._check_ids(params.forced_tokens, "forced_tokens")
        if params.think_budget and not self.think_ids:
            raise ConfigError(
                f"think_budget is {params.think_budget}, but no think tokens are known.",
                fix="use a tokenizer that declares the roles think_start and think_end.",
            )
        if params.newline_run_limit and self.newline_ids is None:
            limit = params.newline_run_limit
            raise ConfigError(
                f"newline_run_limit is {limit}, but no newline tokens are known.",
                fix="give the engine newline_ids.",
            )

    def _check_ids(self, ids: Iterable[int], name: str) -> None:
        vocab_size = self.model.config.vocab_size
        for token in ids:
            if not 0 <= token < vocab_size:
                raise ConfigError(
                    f"{name}: {token} is no token, expected ids from 0 to {vocab_size - 1}.",
                    fix="look the id up with this model's tokenizer.",
                )

    def _admit(self) -> None:
        """Give free rows to waiting sequences, in order."""
        admitted = []
        for sequence in self._waiting:
            if not self._cache.num_free:
                break
            if self._start(sequence):
                admitted.append(sequence)
        for sequence in admitted:
            del self._waiting[sequence]
            self._running[sequence] = None

    def _start(self, sequence: Sequence) -> bool:
        """Whether the sequence could be given a row.

        A choice whose prompt another one is putting into the cache lets others pass until that is
        done, and then starts from a copy.
        """
        prompt = sequence.request.prompt_ids
        running = (other for other in sequence.handle.sequences if other.row >= 0)
        sibling = next(running, None)
        if sibling is None or len(prompt) == 1:
            sequence.row = self._cache.allocate()
        elif sibling.generated:
            sequence.row = self._cache.fork(sibling.row)
            self._cache.truncate(sequence.row, len(prompt) - 1)
            sequence.pending = prompt[-1:]
        return sequence.row >= 0

    def _batches(self) -> list[list[Sequence]]:
        """The forwards of this step: apart by interventions, prompts apart from single tokens."""
        groups: dict[Hashable, list[Sequence]] = {}
        for sequence in self._running:
            groups.setdefault(sequence.handle.forward_key, []).append(sequence)
        batches = []
        for group in groups.values():
            batches.append(_within_budget([row for row in group if len(row.pending) > 1]))
            batches.append([row for row in group if len(row.pending) == 1])
        return [sorted(batch, key=lambda sequence: sequence.row) for batch in batches if batch]

    def _forward(self, batch: list[Sequence]) -> None:
        """Run pending tokens of a batch through the model; sample where a row has none left."""
        chunks = [sequence.pending[:PREFILL_CHUNK] for sequence in batch]
        view = self._cache.append([row.row for row in batch], [len(chunk) for chunk in chunks])
        pairs = enumerate(zip(batch, chunks, strict=True))
        complete = [at for at, (row, chunk) in pairs if len(chunk) == len(row.pending)]
        ready = [batch[at] for at in complete]
        try:
            logits_BV = self._logits(batch, chunks, view, complete)
            events = self._sampler.sample(ready, logits_BV) if ready else []
        except BaseException:  # also an interrupt: the step can then be taken again
            for row, start in zip(view.rows, view.starts, strict=True):
                self._cache.truncate(row, start)
            raise
        for sequence, chunk in zip(batch, chunks, strict=True):
            sequence.pending = sequence.pending[len(chunk) :]
        ended: dict[Sequence, FinishReason] = {}
        for sequence, event in zip(ready, events, strict=True):
            reason = "error" if event is None else sequence.take(event)
            if reason is not None:
                ended[sequence] = reason
        self._finish(ended)

    def _logits(
        self,
        batch: Series[Sequence],
        chunks: Series[Series[int]],
        view: CacheView,
        rows: list[int],
    ) -> Tensor:
        """Logits [len(rows), V], float32, after the last token of some rows of a batch."""
        interventions = batch[0].request.interventions
        hooks = Hooks(interventions) if interventions else None
        ids_BT = _padded(chunks, view.positions_BT.shape[1]).to(self.model.device)
        hidden_BTC = self.model.hidden(ids_BT, view=view, hooks=hooks)
        last = [len(chunks[row]) - 1 for row in rows]
        everywhere = view.uniform and len(rows) == len(batch)
        last_B1C = hidden_BTC[:, -1:] if everywhere else hidden_BTC[rows, last][:, None]
        positions_B1 = None if hooks is None else view.positions_BT[rows, last][:, None]
        logits_B1V = self.model.logits(last_B1C, hooks=hooks, positions_BT=positions_B1)
        return logits_B1V[:, 0].float()

    def _finish(self, ended: dict[Sequence, FinishReason]) -> None:
        """End sequences, free their rows and report it."""
        held = [sequence for sequence in ended if sequence.row >= 0]
        self._cache.release(*(sequence.row for sequence in held))
        for sequence, reason in ended.items():
            self._running.pop(sequence, None)
            self._waiting.pop(sequence, None)
            sequence.row = -1
            sequence.handle.finished(sequence, reason)


def _rows_within(model: Transformer, max_rows: int, kv_cache_bytes: int | None) -> int:
    """The number of rows whose keys and values fit, at most `max_rows`."""
    if max_rows < 1:
        raise ConfigError(f"max_rows is {max_rows}, expected 1 or more.")
    if kv_cache_bytes is None:
        return max_rows
    config = model.config
    token_bytes = (
        2 * config.num_layers * config.num_kv_heads * config.head_dim * model.dtype.itemsize
    )
    row_bytes = token_bytes * config.context_length
    if kv_cache_bytes < row_bytes:
        raise ConfigError(
            f"kv_cache_bytes is {kv_cache_bytes}, but one row that fills the context of"
            f" {config.context_length} takes {row_bytes}.",
            fix=f"allow {row_bytes} or more.",
        )
    return min(max_rows, kv_cache_bytes // row_bytes)


def _within_budget(prompts: list[Sequence]) -> list[Sequence]:
    """As many of the prompts as one forward should take; at least one where there are any."""
    longest = 0
    for taken, sequence in enumerate(prompts):
        longest = max(longest, min(len(sequence.pending), PREFILL_CHUNK))
        if taken and longest * (taken + 1) > PREFILL_BUDGET:
            return prompts[:taken]
    return prompts


def _padded(chunks: Series[Series[int]], width: int) -> Tensor:
    """Chunks of ids as one tensor [B, T], zeros on the right."""
    return torch.tensor([[*chunk, *[0] * (width - len(chunk))] for chunk in chunks])
