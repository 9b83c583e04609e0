"""Promises of the engine: what goes wrong stays where it is, and where there is little room nobody
is forgotten.

A fault or a NaN ends one request, and its neighbours get the bits that they get without it. A
cache that holds a quarter of what is wanted changes no answer. Short requests do not starve a long
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch

from stepwell.errors import LogitsError
from stepwell.generate import engine as engine_module
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import NativeExecutor, Output, TileExecutor, TorchExecutor
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.generate.scheduler import Scheduler
from stepwell.generate.sequence import Handle
from stepwell.generate.sequence import Sequence as Row
from stepwell.model import native
from stepwell.model.blocks import BLOCK
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.native.library import unavailable_reason

V, CONTEXT = 61, 256
POISON = V - 1  # the token whose embedding is not a number
SHAPE: dict[str, Any] = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
CONFIG = ModelConfig(vocab_size=V, context_length=CONTEXT, tie_embeddings=False, **SHAPE)
BLOCK_BYTES = 2 * 2 * 2 * 8 * BLOCK * 4  # keys and values, layers, heads, width, tokens, float32
NEW = 6
LENGTHS = [1, 3, 70, 130, 64, 33, 129, 12]  # of the prompts of a batch of 8
VICTIMS = [3, 0, 5, 2, 7, 4, 1, 6]  # who is hit in each step: all but the last but one are not over

Answer = list[TokenEvent]
Run = Callable[..., Output]


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def executors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no native kernels: {unavailable_reason()}")


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", BLOCK)


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


BATCHES = {
    "sampled": [request(length, temperature=0.8, logprobs=2) for length in LENGTHS],
    "greedy": [request(length, temperature=0) for length in LENGTHS],
}


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


@cache
def undisturbed(kernels: bool, batch: str) -> list[Answer]:
    return answers(strict(), BATCHES[batch])


@contextmanager
def executors_that(change: Callable[[Run], Run]) -> Iterator[None]:
    """While this lasts, what each executor does is changed."""
    with ExitStack() as stack:
        for kind in (NativeExecutor, TileExecutor, TorchExecutor):
            stack.enter_context(patch.object(kind, "run", change(kind.run)))
        yield


Fault = Callable[[Row], Callable[[Run], Run]]


def check_that_only_one_fails(fault: Fault, batch: str, when: int) -> FinishedEvent:
    """The end of the request that a fault hits in one step; checks all that the others are owed."""
    asked, place = BATCHES[batch], VICTIMS[when]
    expected = undisturbed(native.load() is not None, batch)
    engine = strict()
    handles = [engine.submit(each) for each in asked]
    victim = handles[place].sequences[0]
    for step in range(len(VICTIMS)):
        with ExitStack() as stack:
            if step == when:
                stack.enter_context(executors_that(fault(victim)))
            engine.step()
    found = [read(handle) for handle in handles]
    lost, end = found.pop(place)
    assert [answer for answer, _ in found] == [*expected[:place], *expected[place + 1 :]]
    assert {end.reason for _, end in found} == {"length"}
    assert lost == expected[place][: len(lost)]
    assert (engine.num_free_rows, engine._cache.blocks.num_held) == (8, 0)
    assert answers(engine, [asked[place]]) == [expected[place]]  # nothing bad was left in the cache
    return end


# A fault at every step


def raising_before(victim: Row) -> Callable[[Run], Run]:
    return lambda run: _raising(run, victim, ran=False)


def raising_after(victim: Row) -> Callable[[Run], Run]:
    return lambda run: _raising(run, victim, ran=True)


def _raising(run: Run, victim: Row, *, ran: bool) -> Run:
    def fail(self: Any, chunks: Any, interventions: Any = ()) -> Output:
        hit = victim.row in [chunk.row for chunk in chunks]
        output = run(self, chunks, interventions) if ran or not hit else None
        if hit or output is None:
            raise RuntimeError("planted")
        return output

    return fail


def ends_of(fault: Fault, batch: str) -> list[FinishedEvent]:
    """The ends of the requests that are hit, one in each step that there is."""
    return [check_that_only_one_fails(fault, batch, when) for when in range(len(VICTIMS))]


@pytest.mark.parametrize("fault", [raising_before, raising_after])
def test_a_fault_at_any_step_ends_one_request_and_moves_no_bit_of_the_others(fault: Fault) -> None:
    ends = ends_of(fault, "sampled")
    assert [end.reason for end in ends] == ["error"] * 6 + ["length", "error"]
    assert [str(end.error) for end in ends] == ["planted"] * 6 + ["None", "planted"]


def forget_to_isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_or_none(self: InferenceEngine, batch: list[Row]) -> None:
        try:
            self._forward(batch)
        except Exception as error:
            self._finish(dict.fromkeys(batch, "error"), dict.fromkeys(batch, error))

    monkeypatch.setattr(InferenceEngine, "_advance", all_or_none)


def forget_to_roll_back(monkeypatch: pytest.MonkeyPatch) -> None:
    truncate = KVCache.truncate

    def only_to_release(self: KVCache, row: int, length: int) -> None:
        if length == 0:
            truncate(self, row, length)

    monkeypatch.setattr(KVCache, "truncate", only_to_release)


@pytest.mark.parametrize("sabotage", [forget_to_isolate, forget_to_roll_back])
def test_an_engine_without_isolation_breaks_the_promise(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        check_that_only_one_fails(raising_after, "sampled", when=5)


# Logits that are not numbers


def poisoned(victim: Row) -> Callable[[Run], Run]:
    """NaN in what comes out for one row."""
    return lambda run: _poisoning(run, lambda row: row == victim.row)


def spreading(victim: Row) -> Callable[[Run], Run]:
    """The same from an executor in which rows are not apart."""
    return lambda run: _poisoning(run, lambda row: victim.row >= 0)


def _poisoning(run: Run, is_hit: Callable[[int], bool]) -> Run:
    def poison(self: Any, chunks: Any, interventions: Any = ()) -> Output:
        output = run(self, chunks, interventions)
        rows = [chunk.row for chunk in chunks for _ in range(chunk.wanted)]
        hit = [index for index, row in enumerate(rows) if is_hit(row)]
        logits = output.logits.clone()
        logits[hit] = torch.nan
        likeliest = output.likeliest and [
            None if index in hit else token for index, token in enumerate(output.likeliest)
        ]
        return output._replace(logits=logits, likeliest=likeliest)

    return poison


@pytest.mark.parametrize("batch", BATCHES)
def test_nan_in_a_rows_logits_at_any_step_ends_that_request_only(batch: str) -> None:
    ends = ends_of(poisoned, batch)
    hit = [isinstance(end.error, LogitsError) for end in ends]
    # The first is in the midst of its prompt, where no logits are wanted.
    assert hit == [False, True, True, True, True, True, False, True]
    assert [end.reason == "error" for end in ends] == hit


def test_an_executor_that_spreads_nan_breaks_the_promise() -> None:
    with pytest.raises(AssertionError):
        check_that_only_one_fails(spreading, "sampled", when=4)


@pytest.mark.parametrize("length", [5, 130])
def test_nan_from_the_weights_reaches_neither_neighbours_nor_successors(length: int) -> None:
    check_that_sick_keys_reach_nobody(length)


def test_a_cache_that_shows_what_rows_left_behind_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "load", lambda: None)  # the kernels read no further than a row is
    monkeypatch.setattr(CacheView, "_clear", lambda self, gathered, beyond: None)
    with pytest.raises(AssertionError):
        check_that_sick_keys_reach_nobody(130)


def check_that_sick_keys_reach_nobody(length: int) -> None:
    """A request's keys and values become NaN in its answer, at each place, and in its prompt."""
    asked = [request(size, logprobs=2, banned_tokens=[POISON]) for size in LENGTHS[:5]]
    expected = answers(strict(sick=True), asked)
    engine = strict(blocks=10, sick=True)
    for place in range(NEW - 1):
        forced = request(length, forced_tokens=[1] * place + [POISON])
        handles = [engine.submit(each) for each in (*asked, forced)]
        finish(engine, handles)
        *found, (lost, end) = [read(handle) for handle in handles]
        assert [answer for answer, _ in found] == expected
        assert [event.token_id for event in lost] == [1] * place + [POISON]
        assert isinstance(end.error, LogitsError)
    prompt = request(length).prompt_ids
    [failed] = engine.submit(Request((*prompt[:-1], POISON, *prompt[:2])))
    assert isinstance(failed, FinishedEvent)
    assert isinstance(failed.error, LogitsError)
    assert answers(engine, asked) == expected


# Little room


def mixed(count: int) -> list[Request]:
    """Requests of all sizes up to four blocks, some of them with the prompt of another.

    Every third has a short prompt and an answer that grows over several blocks.
    """
    sizes = [
        (1 + number % 60, 140) if number % 3 == 2 else (1 + 37 * number % 190, 1 + number % 24)
        for number in range(count)
    ]
    options = {"temperature": 0.8, "logprobs": 0}
    return [
        request(length, number % 5, max_new_tokens=new, **options)
        for number, (length, new) in enumerate(sizes)
    ]


def a_quarter_of_demand(asked: Sequence[Request], max_rows: int) -> int:
    """A quarter of the blocks that the largest requests fill which can run at once."""
    sizes = [len(each.prompt_ids) + each.sampling.max_new_tokens - 1 for each in asked]
    blocks = sorted((-(-size // BLOCK) for size in sizes), reverse=True)
    return sum(blocks[:max_rows]) // 4


def check_that_a_small_cache_changes_nothing(count: int, max_rows: int) -> None:
    asked = mixed(count)
    engine = strict(max_rows, a_quarter_of_demand(asked, max_rows))
    assert answers(engine, asked) == answers(strict(max_rows), asked)
    blocks = engine._cache.blocks
    assert engine.num_preempted > 0
    assert engine.num_free_rows == max_rows
    assert (blocks.num_held, blocks.num_free + blocks.num_cached) == (0, blocks.total)


def test_a_cache_of_a_quarter_of_demand_moves_no_bit() -> None:
    check_that_a_small_cache_changes_nothing(count=40, max_rows=8)


@pytest.mark.slow
def test_a_cache_of_a_quarter_of_demand_moves_no_bit_of_500_requests() -> None:
    check_that_a_small_cache_changes_nothing(count=500, max_rows=16)


def test_out_of_strict_mode_all_finish_in_a_quarter_of_demand() -> None:
    asked = mixed(40)
    engine = strict(8, a_quarter_of_demand(asked, 8), strict=False)
    found = answers(engine, asked)
    assert [len(answer) for answer in found] == [each.sampling.max_new_tokens for each in asked]


def test_a_preempted_request_that_forgot_its_answer_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preempt = Scheduler._preempt

    def forgetful(self: Scheduler, sequence: Row) -> None:
        preempt(self, sequence)
        sequence.pending = sequence.request.prompt_ids

    monkeypatch.setattr(Scheduler, "_preempt", forgetful)
    with pytest.raises(AssertionError):
        check_that_a_small_cache_changes_nothing(count=40, max_rows=8)


# Everybody's turn comes

AHEAD = 6


def steps_of_a_long_request_in_a_stream_of_short_ones(most: int) -> int:
    """How many steps it takes, at most `most`; two short requests arrive in each."""
    engine = strict(max_rows=3, blocks=4)
    for number in range(AHEAD):
        engine.submit(request(9, number))
    long = engine.submit(request(180, max_new_tokens=30))
    for step in range(most):
        if long.is_finished:
            return step
        for number in range(2):
            engine.submit(request(9, number))
        engine.step()
    return most


def test_a_stream_of_short_requests_does_not_starve_a_long_one() -> None:
    # Those ahead run three at a time; then three chunks of a prompt, the last with a token.
    expected = AHEAD // 3 * NEW + 3 + 30
    assert steps_of_a_long_request_in_a_stream_of_short_ones(2 * expected) <= expected


def test_a_queue_in_order_of_size_would_starve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Scheduler.add

    def by_size(self: Scheduler, sequence: Row) -> None:
        arrivals = self._arrivals
        self._arrivals += 10_000 * len(sequence.request.prompt_ids)
        add(self, sequence)
        self._arrivals = arrivals + 1

    monkeypatch.setattr(Scheduler, "add", by_size)
    assert steps_of_a_long_request_in_a_stream_of_short_ones(150) == 150


@pytest.mark.parametrize("blocks", [4, None])
def test_the_order_of_admission_is_the_order_of_arrival(blocks: int | None) -> None:
    engine = strict(max_rows=3, blocks=blocks)
    handles = [engine.submit(each) for each in mixed(30)]
    met: dict[Handle, None] = {}
    while not all(handle.is_finished for handle in handles):
        met.update(dict.fromkeys(engine.step()))
    assert list(met) == handles
