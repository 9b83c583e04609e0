"""The inference engine: requests of token ids in, events out, all rows advanced together.

A step admits waiting sequences to free cache rows, then runs one forward over prompts (in chunks,
padded on the right) and one over the rows that decode a single token each. Rows finish and are
replaced at any step. The noise of a token has an address, so company and order move no choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence as Series

import torch
from torch import Tensor

from stepwell.errors import PromptError
from stepwell.generate.noise import lane_of
from stepwell.generate.request import FinishReason, Request
from stepwell.generate.sampler import sample_rows
from stepwell.generate.sequence import Handle, Sequence
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.hooks import Hooks, Intervention
from stepwell.model.transformer import Transformer

PREFILL_CHUNK = 512
PREFILL_BUDGET = 8192


class InferenceEngine:
    """Generates for many requests at once with one model.

    Nothing runs by itself: iterating over a handle, or calling `step`, drives all requests forward.
    `kv_cache_bytes` lowers `max_rows` to what fits when every row fills the context. `eos_ids` end
    an answer (the model's own by default); `newline_ids` are what the newline-run guard counts.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        max_rows: int = 32,
        kv_cache_bytes: int | None = None,
        eos_ids: Iterable[int] | None = None,
        newline_ids: Iterable[int] = (),
    ) -> None:
        if kv_cache_bytes is not None:
            max_rows = max(1, min(max_rows, kv_cache_bytes // _row_bytes(model)))
        self.model = model.eval()
        self.max_rows = max_rows
        self.newline_ids = tuple(newline_ids)
        self.eos_ids = frozenset(model.config.eos_ids if eos_ids is None else eos_ids)
        self._lane: int | None = None
        self._cache = model.new_cache(max_rows)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def lane(self) -> int:
        """The lane of this engine's noise: that of the model which samples. Hashed when first needed."""
        if self._lane is None:
            self._lane = lane_of(model_fingerprint(self.model))
        return self._lane

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises PromptError or HookError where the model cannot run it."""
        for intervention in request.interventions:
            intervention.check(self.model.config)
        handle = Handle(
            request,
            room=self._room_for(request),
            stop_ids=frozenset() if request.sampling.ignore_eos else self.eos_ids,
            drive=self.step,
            finish=self._finish,
        )
        self._waiting.extend(handle.sequences)
        return handle

    def step(self) -> list[Handle]:
        """Advance every running sequence: admit, prefill a chunk, decode one token.

        Returns the requests that moved, each once, in the order of their submission.
        """
        self._admit()
        moved = list(dict.fromkeys(sequence.handle for sequence in self._running))
        with torch.inference_mode():
            for batch in self._batches():
                self._forward(batch)
        return moved

    def _room_for(self, request: Request) -> int:
        """Number of tokens that may be generated. Raises PromptError where there is none."""
        config, length = self.model.config, len(request.prompt_ids)
        if length >= config.context_length:
            raise PromptError(
                f"The prompt has {length} tokens, but the model's context holds"
                f" {config.context_length} and the answer needs one of them.",
                fix="shorten the prompt, or use a model with a longer context.",
            )
        foreign = [token for token in request.prompt_ids if token >= config.vocab_size]
        if foreign:
            raise PromptError(
                f"Token id {foreign[0]} is not in the model's vocabulary of {config.vocab_size}.",
                fix="encode the prompt with the model's own tokenizer.",
            )
        return min(request.sampling.max_new_tokens, config.context_length - length)

    def _admit(self) -> None:
        """Give free rows to waiting sequences, in order.

        Choices after a request's first wait until its prompt is in the cache and start from a copy.
        """
        while self._waiting and self._cache.num_free:
            sequence = self._waiting[0]
            sibling = next((other for other in sequence.handle.sequences if other.row >= 0), None)
            if sibling is not None and not sibling.generated:
                return
            prompt = sequence.request.prompt_ids
            if sibling is not None and len(prompt) > 1:
                sequence.row = self._cache.fork(sibling.row)
                self._cache.truncate(sequence.row, len(prompt) - 1)
                sequence.pending = prompt[-1:]
            else:
                sequence.row = self._cache.allocate()
            self._running.append(self._waiting.popleft())

    def _batches(self) -> list[list[Sequence]]:
        """The forwards of this step: apart by interventions, prompts apart from single tokens."""
        groups: dict[str, list[Sequence]] = {}
        for sequence in sorted(self._running, key=lambda sequence: sequence.row):
            groups.setdefault(_hooks_key(sequence.request.interventions), []).append(sequence)
        batches = []
        for group in groups.values():
            prompts = _within_budget([row for row in group if len(row.pending) > 1])
            batches += [prompts, [row for row in group if len(row.pending) == 1]]
        return [batch for batch in batches if batch]

    def _forward(self, batch: list[Sequence]) -> None:
        """Run pending tokens of a batch through the model; sample where a row has none left."""
        chunks = [sequence.pending[:PREFILL_CHUNK] for sequence in batch]
        counts = [len(chunk) for chunk in chunks]
        view = self._cache.append([sequence.row for sequence in batch], counts)
        interventions = batch[0].request.interventions
        hooks = Hooks(interventions) if interventions else None
        ids_BT = _padded(chunks, max(counts)).to(self.model.device)
        hidden_BTC = self.model.hidden(ids_BT, view=view, hooks=hooks)
        for sequence, count in zip(batch, counts, strict=True):
            sequence.pending = sequence.pending[count:]
        ready = [index for index, sequence in enumerate(batch) if not sequence.pending]
        if not ready:
            return
        last = [counts[index] - 1 for index in ready]
        plain = view.uniform and len(ready) == len(batch)
        last_B1C = hidden_BTC[:, -1:] if plain else hidden_BTC[ready, last][:, None]
        positions_B1 = None if hooks is None else view.positions_BT[ready, last][:, None]
        logits_B1V = self.model.logits(last_B1C, hooks=hooks, positions_BT=positions_B1)
        self._sample([batch[index] for index in ready], logits_B1V[:, 0].float())

    def _sample(self, batch: list[Sequence], logits_BV: Tensor) -> None:
        """Choose each row's next token and report it."""
        events = sample_rows(batch, logits_BV, lane=self.lane, newline_ids=self.newline_ids)
        for sequence, event in zip(batch, events, strict=True):
            if event is None:
                self._finish(sequence, "error")
                continue
            reason = sequence.take(event.token_id)
            sequence.handle.emit(event)
            if reason is not None:
                self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, free its row and report it."""
        if sequence.row >= 0:
            self._cache.release(sequence.row)
            self._running.remove(sequence)
            sequence.row = -1
        else:
            self._waiting.remove(sequence)
        sequence.handle.finished(sequence, reason)


def _row_bytes(model: Transformer) -> int:
    """Bytes of keys and values of one row that fills the context."""
    config = model.config
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_token * config.context_length * model.dtype.itemsize


def _hooks_key(interventions: Iterable[Intervention]) -> str:
    """The same for sequences whose forward is changed in the same way."""
    return " ".join(f"{type(value).__name__}:{value.fingerprint}" for value in interventions)


def _within_budget(prompts: list[Sequence]) -> list[Sequence]:
    """As many of the prompts as one forward should take; at least one where there are any."""
    longest, taken = 0, 0
    for taken, sequence in enumerate(prompts):
        longest = max(longest, min(len(sequence.pending), PREFILL_CHUNK))
        if taken and longest * (taken + 1) > PREFILL_BUDGET:
            return prompts[:taken]
    return prompts


def _padded(chunks: list[Series[int]], width: int) -> Tensor:
    """Chunks of ids as one tensor [B, T], zeros on the right."""
    if all(len(chunk) == width for chunk in chunks):
        return torch.tensor(chunks)
    return torch.tensor([[*chunk, *[0] * (width - len(chunk))] for chunk in chunks])
