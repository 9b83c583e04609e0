"""vLLM's CPU build as a peer: its offline engine, greedy, without the prefix cache."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from .conversation import Player, Setup, Timing, converse, random_prompts

CACHE_GIB = "2"


class VLLM(Player):
    """vllm.LLM in bfloat16, compiled as it does by default, with as many rows as it likes."""

    def __init__(self, setup: Setup) -> None:
        assert setup.weights == "bf16", "its CPU build is compared with bfloat16 weights"
        self._setup = setup
        cpus = sorted(os.sched_getaffinity(0))[: setup.threads]
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": CACHE_GIB,
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        import vllm  # type: ignore[import-not-found,unused-ignore]  # it reads those when imported

        self.version = str(vllm.__version__)
        self._vllm: Any = vllm
        self._engine: Any = vllm.LLM(
            model=setup.model,
            dtype="bfloat16",
            max_model_len=setup.length,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
        )

    def measure(self, rows: int, prompt: int, new: int, seed: int) -> Timing:
        prompts = random_prompts(seed, [prompt] * rows, self._setup.vocab_size)
        whole = self._seconds(prompts, [new] * rows)
        first = self._seconds(prompts, [1] * rows) if new > 1 else whole
        return Timing(first, whole - first)

    def batch(self, requests: Sequence[Sequence[int]], seed: int) -> float:
        lengths, new = zip(*requests, strict=True)
        return self._seconds(random_prompts(seed, lengths, self._setup.vocab_size), new)

    def _seconds(self, prompts: list[list[int]], new: Sequence[int]) -> float:
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        sampling = [
            self._vllm.SamplingParams(
                temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
            )
            for count in new
        ]
        begun = time.perf_counter()
        self._engine.generate(asked, sampling, use_tqdm=False)
        return time.perf_counter() - begun


def main() -> None:
    """Converses until the input ends."""
    converse(VLLM)
