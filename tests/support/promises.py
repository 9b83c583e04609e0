"""A small engine whose answers are compared bit by bit, and what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.generate.sequence import Handle
from stepwell.model.blocks import BLOCK
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

V, CONTEXT = 61, 256
POISON = V - 1  # the token whose embedding is not a number
SHAPE: dict[str, Any] = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
CONFIG = ModelConfig(vocab_size=V, context_length=CONTEXT, tie_embeddings=False, **SHAPE)
BLOCK_BYTES = 2 * 2 * 2 * 8 * BLOCK * 4  # keys and values, layers, heads, width, tokens, float32
NEW = 6

Answer = list[TokenEvent]


@cache
def model(*, sick: bool = False) -> Transformer:
    made = Transformer(CONFIG)
    made.initialize(0)
    if sick:
        with torch.no_grad():
            made.embed.weight[POISON] = torch.nan
    return made.eval()


def strict(
    max_rows: int = 8, blocks: int | None = None, *, sick: bool = False, **options: Any
) -> InferenceEngine:
    num_bytes = None if blocks is None else blocks * BLOCK_BYTES
    options = {"strict": True, "max_rows": max_rows, "kv_cache_bytes": num_bytes, **options}
    return InferenceEngine(model(sick=sick), eos_ids=[], **options)


def request(length: int, seed: int = 0, **params: Any) -> Request:
    """A prompt of so many tokens, none of them the poisonous one."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    ids = torch.randint(POISON, (length,), generator=generator).tolist()
    values = {"seed": seed, "max_new_tokens": NEW, **params}
    return Request(tuple(ids), SamplingParams(**values))


def finish(engine: InferenceEngine, handles: Sequence[Handle]) -> None:
    while not all(handle.is_finished for handle in handles):
        engine.step()


def read(handle: Handle) -> tuple[Answer, FinishedEvent]:
    """The tokens that a finished request of one choice has got, and its one end."""
    *sampled, end = handle.drain()
    assert isinstance(end, FinishedEvent)
    return [event for event in sampled if isinstance(event, TokenEvent)], end


def answers(engine: InferenceEngine, asked: Sequence[Request]) -> list[Answer]:
    """What each of the requests gets, all submitted at once; none of them may fail."""
    handles = [engine.submit(each) for each in asked]
    finish(engine, handles)
    found = [read(handle) for handle in handles]
    assert {end.reason for _, end in found} == {"length"}
    return [answer for answer, _ in found]
