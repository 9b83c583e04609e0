"""A generator that keeps time while it answers, and leaves the one that it was made from alone.

It has an engine of its own over the same model, in which the executors and the sampler are timed.
Their arithmetic is what it always is: they are called as before, with a clock around the call.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from stepwell.evals.profile.clock import Clock
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import (
    Chunk,
    Executor,
    NativeExecutor,
    Output,
    TileExecutor,
    TorchExecutor,
)
from stepwell.generate.request import Request
from stepwell.generate.sequence import Handle
from stepwell.generate.speculative import DraftRule, DraftSource
from stepwell.generate.text import TextGenerator
from stepwell.model.blocks import blocks_for
from stepwell.model.transformer import Block, Transformer
from stepwell.native.library import load as load_kernels

Thing = TypeVar("Thing")

NAMES: Final[dict[type, str]] = {
    TorchExecutor: "torch",
    NativeExecutor: "kernels",
    TileExecutor: "tiles",
}


class WatchedEngine(InferenceEngine):
    """An engine for one request at a time that notes where the time goes.

    clock: seconds by phase. chosen: when each token was chosen, by that clock. computed_by: the
    executors that ran in a phase. salt: requests find their prompt in the cache only where it was
    read under the same salt.
    """

    def __init__(self, model: Transformer, clock: Clock, **options: Any) -> None:
        self.watches_parts = False
        self._logits = model.logits
        super().__init__(changed(model, logits=self._timed_logits), max_rows=1, **options)
        self.clock = clock
        self.salt = ""
        self.chosen: list[float] = []
        self.computed_by: dict[str, list[str]] = {}
        executor_of, verify = self._executors.of, self._sampler.verify
        self._executors = changed(
            self._executors, of=lambda *asked: _WatchedExecutor(executor_of(*asked), self)
        )
        self._sampler = changed(self._sampler, verify=self._noting(clock.timed("sampling", verify)))

    @property
    def phase(self) -> str:
        """What a forward is for now: the prompt, until a token was chosen, or the next token."""
        return "decoding" if self.chosen else "prefill"

    def submit(
        self,
        request: Request,
        *,
        draft: DraftSource | None = None,
        draft_rule: DraftRule = "equality",
    ) -> Handle:
        with self.clock.during("rest"):
            salted = replace(request, cache_salt=self.salt)
            return super().submit(salted, draft=draft, draft_rule=draft_rule)

    def step(self) -> list[Handle]:
        with self.clock.during("rest"):
            return super().step()

    def settle(self) -> None:
        """Wait until the device has computed what it was given."""
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize(self.model.device)

    def forget(self, salt: str) -> None:
        """Be ready for another run, under this salt."""
        self.clock.reset()
        self.salt, self.chosen, self.computed_by = salt, [], {}

    def key_of(self, part: str) -> str:
        """What the clock has for a part of the model now."""
        return f"{self.phase}/{part}"

    def _timed_logits(self, *args: Any, **options: Any) -> Tensor:
        """The model's head, which may be a module or the embedding."""
        if not self.watches_parts:
            return self._logits(*args, **options)
        with self.clock.during(self.key_of("head")):
            logits = self._logits(*args, **options)
            self.settle()
        return logits

    def _noting(self, verify: Callable[..., Any]) -> Callable[..., Any]:
        """`verify`, with the moment of each choice noted."""

        def call(*args: Any) -> Any:
            events = verify(*args)
            self.chosen.append(self.clock.now())
            return events

        return call


class _WatchedExecutor:
    """An executor whose runs are timed."""

    def __init__(self, executor: Executor, engine: WatchedEngine) -> None:
        self._executor, self._engine = executor, engine

    @property
    def name(self) -> str:
        """That of the executor."""
        return self._executor.name

    def run(self, chunks: Sequence[Chunk]) -> Output:
        phase, known = self._engine.phase, self._engine.computed_by
        name = executor_name(self._executor)
        if name not in known.setdefault(phase, []):
            known[phase].append(name)
        with self._engine.clock.during(phase):
            output = self._executor.run(chunks)
            self._engine.settle()
        return output


def executor_name(executor: Executor) -> str:
    """What an executor is called; kernels with their instruction set."""
    name = NAMES.get(type(executor), type(executor).__name__)
    library = load_kernels() if isinstance(executor, NativeExecutor) else None
    return f"{name} ({library.instruction_set})" if library else name


def watched_generator(
    generator: TextGenerator, engine: WatchedEngine, clock: Clock
) -> TextGenerator:
    """A copy of the generator that encodes by the clock and runs on this engine."""
    encode = clock.timed("tokenizing", generator.tokenizer.encode_batch)
    tokenizer = changed(generator.tokenizer, encode_batch=encode)
    return changed(generator, tokenizer=tokenizer, engine=engine)


def watched_engine(generator: TextGenerator, clock: Clock, positions: int) -> WatchedEngine:
    """An engine like the generator's, with room for one sequence of so many positions.

    With no more room than that its cache has its size after one run, and every later one is alike.
    """
    pool = generator.model.new_cache(1).pool
    block_bytes = math.prod(pool.shape[1:]) * pool.itemsize
    like = generator.engine
    return WatchedEngine(
        generator.model,
        clock,
        strict=like.strict,
        kv_cache_bytes=blocks_for(positions) * block_bytes,
        eos_ids=like.eos_ids,
        newline_ids=like.newline_ids,
        think_ids=like.think_ids,
    )


@contextmanager
def watched_parts(engine: WatchedEngine) -> Iterator[None]:
    """While this lasts the parts of the model are timed too, by hooks on its modules."""

    def begin(part: str) -> None:
        engine.settle()
        engine.clock.begin(engine.key_of(part))

    def end(*_: object) -> None:
        engine.settle()
        engine.clock.end()

    handles = []
    engine.watches_parts = True
    try:
        for part, module in parts_of(engine.model):
            start = partial(lambda part, *_: begin(part), part)
            handles.append(module.register_forward_pre_hook(start, prepend=True))
            handles.append(module.register_forward_hook(end))
        yield
    finally:
        engine.watches_parts = False
        for handle in handles:
            handle.remove()


def parts_of(model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model, each with the part that it belongs to; none inside of another."""
    yield "embedding", model.embed
    for block in model.blocks:
        assert isinstance(block, Block)
        yield "norms", block.attention_norm
        yield "attention", block.attention
        yield "norms", block.mlp_norm
        yield "mlp", block.mlp
    yield "norms", model.final_norm


def changed(thing: Thing, **attributes: Any) -> Thing:
    """A copy of a thing with other attributes or methods; the thing itself stays as it is."""
    other = copy.copy(thing)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other
