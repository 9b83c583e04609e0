"""What peers that read and change a model's inside have in common: timing, and a tokenizer.

They load nothing without a tokenizer, and random weights have none: theirs knows one word.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models

from .changes import Change, change_of
from .conversation import Answer, Player, Setup, random_prompts


class HookingPlayer(Player):
    """A peer that generates greedily under hooks, in float32; overrides three ways to run."""

    def __init__(self, setup: Setup) -> None:
        assert setup.weights == "fp32", "hooks are compared in float32"
        torch.set_num_threads(setup.threads)
        self._setup = setup

    def generate(self, ids_BT: torch.Tensor, new: int, change: Change | None) -> torch.Tensor:
        """Prompts with so many greedy tokens behind them, made with a cache under the change."""
        raise NotImplementedError

    def record(self, ids_BT: torch.Tensor, new: int, layer: int) -> list[torch.Tensor]:
        """The attention pattern of a layer, [B, H, T, S] for each step of generating."""
        raise NotImplementedError

    def next_logits(self, ids_BT: torch.Tensor, change: Change) -> torch.Tensor:
        """The logits behind one prompt under the change, [V]."""
        raise NotImplementedError

    def hooked(
        self, rows: int, prompt: int, new: int, seed: int, hook: Mapping[str, Any] | None
    ) -> Answer:
        ids = random_prompts(seed, [prompt] * rows, self._setup.vocab_size)
        whole, answer = self._timed(torch.tensor(ids), new, hook)
        first = self._timed(torch.tensor(ids), 1, hook)[0] if new > 1 else whole
        return Answer(first, whole - first, answer)

    def logits(self, prompt: int, seed: int, hook: Mapping[str, Any]) -> list[float]:
        ids_BT = torch.tensor(random_prompts(seed, [prompt], self._setup.vocab_size))
        with torch.no_grad():
            logits: list[float] = self.next_logits(ids_BT, change_of(hook)).tolist()
        return logits

    def _timed(
        self, ids_BT: torch.Tensor, new: int, hook: Mapping[str, Any] | None
    ) -> tuple[float, list[list[int]]]:
        """Seconds of generating under the hook, and the answers; none where it records."""
        if hook is not None and "record" in hook:
            return self._recording_s(ids_BT, new, hook["record"]), []
        change, applied = (None, []) if hook is None else counted(change_of(hook))
        begun = time.perf_counter()
        whole = self.generate(ids_BT, new, change)
        seconds = time.perf_counter() - begun
        if change is not None:
            steps = 1 if change.prompt_only else new
            assert len(applied) == steps, f"changed {len(applied)} steps, expected {steps}"
        answers: list[list[int]] = whole[:, ids_BT.shape[1] :].tolist()
        return seconds, answers

    def _recording_s(self, ids_BT: torch.Tensor, new: int, layer: int) -> float:
        begun = time.perf_counter()
        steps = self.record(ids_BT, new, layer)
        seconds = time.perf_counter() - begun
        keys = ids_BT.shape[1] + new - 1
        recorded = len(steps), steps[-1].shape[-1]
        assert recorded == (new, keys), f"recorded {recorded}, expected {(new, keys)}"
        return seconds


def counted(change: Change) -> tuple[Change, list[bool]]:
    """The change, and a list that has one entry more each time that it is applied."""
    applied: list[bool] = []

    def apply(value: torch.Tensor) -> None:
        change.apply(value)
        applied.append(True)

    return change._replace(apply=apply), applied


@contextmanager
def one_word_tokenizer() -> Iterator[Any]:
    """A tokenizer that fits every vocabulary as long as nobody asks it for text.

    It lies in a folder meanwhile, from which it can be loaded once more.
    """
    fast: Any = transformers.PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({"a": 0}, "a"))
    made = fast(tokenizer_object=words, bos_token="a", eos_token="a", pad_token="a")
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        yield transformers.AutoTokenizer.from_pretrained(folder)
