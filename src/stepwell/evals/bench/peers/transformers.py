"""Hugging Face transformers as a peer: `generate`, greedy, and training, as its users do both."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from .conversation import (
    FIRST_PROMPT,
    LEARNING_RATE,
    Player,
    Setup,
    Timing,
    converse,
    random_ids,
    random_prompts,
)


class Transformers(Player):
    """AutoModelForCausalLM in bfloat16, with its defaults."""

    version = f"{transformers.__version__} (torch {torch.__version__})"

    def __init__(self, setup: Setup) -> None:
        assert setup.weights == "bf16", "there are no 8-bit weights on a CPU"
        torch.set_num_threads(setup.threads)
        self._setup = setup
        self._model = self._loaded()
        self._trained: tuple[bool, Any, torch.optim.AdamW] | None = None

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        ids = random_prompts(seed, [prompt] * rows, self._setup.vocab_size)
        whole = _seconds(self._model, ids, new)
        first = _seconds(self._model, ids, 1) if new > 1 else whole
        return Timing(first, whole - first)

    def load(self, seed: int) -> float:
        ids = random_ids(seed, FIRST_PROMPT, self._setup.vocab_size)
        begun = time.perf_counter()
        _seconds(self._loaded(), [ids], 1)
        return time.perf_counter() - begun

    def train(self, rows: int, length: int, seed: int, compiled: bool) -> float:
        if self._trained is None or self._trained[0] != compiled:
            self._trained = None  # lets go of the one before
            self._trained = (compiled, *self._trainable(compiled))
        _, model, optimizer = self._trained
        ids_BT = torch.tensor(random_prompts(seed, [length] * rows, self._setup.vocab_size))
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    def _trainable(self, compiled: bool) -> tuple[Any, torch.optim.AdamW]:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self._setup.model, dtype=torch.float32
        )
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        return torch.compile(model) if compiled else model, optimizer

    def _loaded(self) -> Any:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self._setup.model, dtype=torch.bfloat16
        )
        return model.eval()


def _seconds(model: Any, ids: list[list[int]], new: int) -> float:
    """Seconds of generating so many tokens behind prompts of one length."""
    ids_BT = torch.tensor(ids)
    begun = time.perf_counter()
    model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - begun


def main() -> None:
    """Converses until the input ends."""
    converse(Transformers)
