"""What is kept of prompts: within the budget, the oldest first to go, and nothing lost by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stepwell.cascade.kv import KVManager
from stepwell.cascade.stages.local import LocalStage
from stepwell.generate.text import TextGenerator
from stepwell.model.blocks import BLOCK
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.text.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONFIG = ModelConfig(
    vocab_size=27, context_length=256, width=16, num_layers=2, num_heads=2, tie_embeddings=False
)
BLOCK_BYTES = 2 * 2 * 16 * BLOCK * 4  # keys and values, layers, width, tokens, float32


def local(seed: int, **options: Any) -> LocalStage:
    model = Transformer(CONFIG)
    model.initialize(seed)
    tokenizer = Tokenizer.character(LETTERS + ">", roles={})
    options = {"strict": True, "max_rows": 2, **options}
    return LocalStage(f"stage {seed}", TextGenerator(model, tokenizer, **options))


def prompt(number: int, length: int = 140) -> str:
    generator = torch.Generator().manual_seed(number)
    places = torch.randint(26, (length,), generator=generator).tolist()
    return "".join(LETTERS[place] for place in places)


def say(stage: LocalStage, text: str) -> Any:
    [reply] = stage.generate([text], temperature=0.8, seed=1, max_new_tokens=6)
    return reply.completion


def asked(manager: KVManager, stage: LocalStage, *numbers: int) -> list[int]:
    """Asks a stage, keeps what it read, and says how much of each prompt it found."""
    found = []
    for number in numbers:
        done = say(stage, prompt(number))
        manager.keep(1, prompt(number), done)
        found.append(done.usage.cached_tokens)
    return found


def test_what_fits_the_budget_is_found_again_and_the_oldest_goes_first() -> None:
    stage = local(0)
    manager = KVManager([stage], 4 * BLOCK_BYTES)  # two prompts of two full blocks
    assert asked(manager, stage, 1, 2) == [0, 0]
    assert manager.statistics.kept_bytes == 4 * BLOCK_BYTES
    asked(manager, stage, 3)
    now = manager.statistics
    assert (now.kept, now.evicted, now.kept_bytes) == (2, 1, 4 * BLOCK_BYTES)
    assert asked(manager, stage, 2, 3) == [2 * BLOCK] * 2
    assert manager.statistics.cached_tokens == 4 * BLOCK
    table = manager.cached([prompt(2), prompt(9)])
    assert table is not None
    assert table.tolist() == [[2 * BLOCK], [0]]


def test_an_evicted_prompt_is_read_again_to_the_same_bits() -> None:
    stage = local(0, kv_cache_bytes=6 * BLOCK_BYTES)
    manager = KVManager([stage], 2 * BLOCK_BYTES)
    first = say(stage, prompt(1))
    manager.keep(1, prompt(1), first)
    asked(manager, stage, *range(2, 8))
    assert stage.num_cached(prompt(1)) == 0
    again = say(stage, prompt(1))
    assert replace(again, usage=first.usage) == first
    assert again.usage.cached_tokens == 0


def test_running_rows_take_back_what_is_kept() -> None:
    stage = local(0, kv_cache_bytes=6 * BLOCK_BYTES)
    manager = KVManager([stage], 2**30)
    asked(manager, stage, 1, 2)
    stage.generate([prompt(8, 200), prompt(9, 200)], temperature=0.8, max_new_tokens=20)
    now = manager.statistics
    assert now.returned > 0
    assert now.kept + now.returned == 2
    manager.clear()
    assert manager.statistics.kept_bytes == 0
    assert stage.generator.engine._cache.blocks.num_held == 0


def test_short_prompts_and_stages_that_run_elsewhere_keep_nothing(scripted: Any) -> None:
    stage = local(0)
    manager = KVManager([stage, scripted("server", {})], 2**20)
    manager.keep(1, "abc", say(stage, "abc"))
    manager.keep(2, prompt(1), say(stage, prompt(1)))
    assert manager.statistics.kept == 0
    assert manager.statistics.prompt_tokens == 143
    assert manager.cached([prompt(1)]) is None


@pytest.mark.parametrize("budget", [0, BLOCK_BYTES - 1])
def test_without_a_budget_nothing_stays(budget: int) -> None:
    stage = local(0)
    manager = KVManager([stage], budget)
    asked(manager, stage, 1)
    assert manager.statistics.kept == 0
    assert manager.statistics.evicted == 1
