"""Questions without a peer: our decoding against the memory, and against itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch

from stepwell.evals.bench.figures import Figures, Row, make_row
from stepwell.evals.bench.hook import Hook
from stepwell.evals.bench.hooks import decoding, hooks
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.peers.conversation import random_ids
from stepwell.evals.bench.plan import WEIGHTS, BenchPlan, Question, Subject, Weights
from stepwell.evals.bench.response_cache import cache
from stepwell.evals.bench.speculation import speculation
from stepwell.evals.bench.training import share
from stepwell.evals.bench.turns import Turn, take_turns
from stepwell.generate.executor import Chunk, Executor, NativeExecutor, TorchExecutor
from stepwell.model.cache import KVCache
from stepwell.model.native import native_decoder
from stepwell.model.transformer import Transformer

STEPS: Final = 32
"""Steps whose mean is one measurement of `verify`."""

DRAFTS: Final = (4, 8)


def bandwidth(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:
    """GB/s of weights while one row is decoded, against a read-only pass on the same threads."""
    weights, decode = streamed_bytes(ours.model), decoding(ours, plan, Hook(), rows=1)
    figures = take_turns(
        {
            "decoding": lambda number: weights * decode(number) / 1e9,
            "reading": read_pass(plan.read_mib),
        },
        plan,
    )
    sides = (figures["decoding"], "read-only pass", figures["reading"])
    yield make_row("bandwidth", ours.weights, subject.name, "GB/s", *sides)


def read_pass(mib: int) -> Turn:
    """A turn that gives GB/s of a read-only pass over so many MiB on torch's threads."""
    ballast = torch.ones(mib * 2**20 // 4)  # zeros could all be the same page

    def turn(_round: int) -> float:
        begun = time.perf_counter()
        ballast.amax()  # no other reduction of torch's or numpy's reads faster
        return ballast.nbytes / (time.perf_counter() - begun) / 1e9

    return turn


def streamed_bytes(model: Transformer) -> int:
    """Bytes of weights that a step reads: all but an embedding that is only looked up."""
    looked_up = {"position_embed.weight"} | ({"embed.weight"} if model.head is not None else set())
    return sum(value.nbytes for name, value in model.named_parameters() if name not in looked_up)


def verify(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:
    """Milliseconds of a step over 4 and 8 tokens of one sequence, against a step over 1."""
    cache, config = ours.model.new_cache(1), ours.model.config
    executor, row = executor_of(ours.model, cache), cache.allocate()
    room = config.context_length - max(DRAFTS)
    ids = random_ids(0, min(plan.prompt_tokens, room), config.vocab_size)
    with torch.inference_mode():
        executor.run([Chunk(row, ids, 1)])
    turns = {str(count): step_ms(executor, cache, row, ids[:count]) for count in (1, *DRAFTS)}
    figures = take_turns(turns, plan)
    for draft in DRAFTS:
        sides = (figures[str(draft)], "1 token", figures["1"])
        yield make_row("verify", f"{draft} tokens", subject.name, "ms", *sides)


def executor_of(model: Transformer, cache: KVCache) -> Executor:
    """What decodes this model: the kernels where there are any."""
    decoder = native_decoder(model)
    return TorchExecutor(model, cache) if decoder is None else NativeExecutor(decoder, cache)


def step_ms(executor: Executor, cache: KVCache, row: int, ids: list[int]) -> Turn:
    """A turn that gives milliseconds a step over these tokens, each undone after it."""
    start = cache.length(row)
    chunk = Chunk(row, ids, wanted=len(ids))

    def turn(_round: int) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            for _ in range(STEPS):
                executor.run([chunk])
                cache.truncate(row, start)
        return (time.perf_counter() - begun) / STEPS * 1e3

    return turn


def memory(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:  # noqa: ARG001
    """MiB that loading and a first token take at most in a new process, against the weights'."""
    found = measured_apart(subject, ours.weights)
    sizes = found if isinstance(found, str) else Figures((found["peak"] / 2**20,))
    files = None if isinstance(found, str) else Figures((found["weights"] / 2**20,))
    yield make_row("load", "memory", subject.name, "MiB", sizes, "size of the weights", files)


def measured_apart(subject: Subject, weights: Weights) -> dict[str, int] | str:
    """What peak_memory.py prints in a process of its own, or the last line of its complaint."""
    arguments = [str(subject.directory), weights, str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "stepwell.evals.bench.peak_memory", *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    found: dict[str, int] = json.loads(done.stdout)
    return found


@dataclass(frozen=True)
class Trial:
    """A question that we answer alone, and the weights that it is asked of."""

    question: Question
    rows: Callable[[Subject, Ours, BenchPlan], Iterator[Row]]
    weights: tuple[Weights, ...] = ("bf16",)


ALONE: Final = (
    Trial("load", memory),
    Trial("bandwidth", bandwidth, WEIGHTS),
    Trial("verify", verify),
    Trial("speculation", speculation),
    Trial("hooks", hooks, ("fp32",)),
    Trial("cache", cache),
    Trial("train", share),
)
