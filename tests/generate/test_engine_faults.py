"""A request that fails in the engine harms nobody else, and no step is half done."""

from __future__ import annotations

import pytest
import torch
from support.engines import engine_of, request, run_all, tokens

from stepwell.generate import engine as engine_module
from stepwell.generate.executor import Output
from stepwell.model.cache import KVCache

pytestmark = pytest.mark.usefixtures("executors")


class Faulty:
    """The executors of an engine, with a fault in what they put out."""

    def __init__(self, engine, fault):
        self.of_engine, self.fault = engine._executors.of, fault
        engine._executors.of = self

    def __call__(self, *asked):
        self.executor = self.of_engine(*asked)
        self.name = self.executor.name
        return self

    def run(self, chunks):
        return self.fault(chunks, lambda: self.executor.run(chunks))


def test_logits_that_are_not_finite_end_their_own_row_only(model):
    asked = [request(*range(1, 4 + row), seed=row) for row in range(3)]
    expected = run_all(engine_of(model), asked)
    engine = engine_of(model)
    handles = [engine.submit(each) for each in asked]
    engine.step()
    engine.step()
    victim = handles[1].sequences[0]

    def poisoned(chunks, run):
        logits = run().logits.clone()
        logits[[chunk.row == victim.row for chunk in chunks]] = torch.nan
        return Output(logits)

    faulty = Faulty(engine, poisoned)
    engine.step()
    engine._executors.of = faulty.of_engine
    found = [tokens(handle) for handle in handles]
    assert found == [expected[0], (expected[1][0][:2], "error"), expected[2]]
    assert engine.num_free_rows == 4


@pytest.mark.parametrize("when", range(6))
def test_a_forward_that_fails_for_one_request_ends_that_one_only(model, when):
    asked = [request(*range(1, 4 + row), seed=row) for row in range(4)]
    expected = run_all(engine_of(model), asked)
    engine = engine_of(model)
    handles = [engine.submit(each) for each in asked]
    victim = handles[2].sequences[0]
    for _ in range(when):
        engine.step()

    def broken(chunks, run):
        if victim.row in [chunk.row for chunk in chunks]:
            raise RuntimeError("a kernel failed")
        return run()

    Faulty(engine, broken)
    found = [tokens(handle) for handle in handles]
    lost = (expected[2][0][:when], "error")
    assert found == [*expected[:2], expected[2] if when == 6 else lost, expected[3]]
    assert engine.num_free_rows == 4


def test_a_batch_that_does_not_fit_the_memory_is_halved(model, caplog):
    asked = [request(*range(1, 4 + row), seed=row) for row in range(4)]
    expected = run_all(engine_of(model), asked)
    engine, sizes = engine_of(model), []

    def small(chunks, run):
        sizes.append(len(chunks))
        if len(chunks) > 1:
            raise torch.OutOfMemoryError("no memory for two")
        return run()

    Faulty(engine, small)
    assert run_all(engine, asked) == expected
    assert sizes[:7] == [4, 2, 1, 1, 2, 1, 1]
    assert "Out of memory with 4 rows: going on with half of them" in caplog.text


def after_nan(model, asked):
    """The answers by rows that held keys that are not numbers before."""
    engine = engine_of(model, max_rows=2)

    def poisoned(chunks, run):
        logits = run().logits
        engine._cache.pool.fill_(torch.nan)
        return Output(logits * torch.nan)

    faulty = Faulty(engine, poisoned)
    assert run_all(engine, [request(*[1] * 30)] * 2) == [([], "error")] * 2
    engine._executors.of = faulty.of_engine
    return run_all(engine, asked)


def test_a_row_that_held_nan_is_clean_for_the_next(model):
    asked = [request(), request(*[1] * 20)]
    expected = run_all(engine_of(model), asked)
    assert after_nan(model, asked) == expected


@pytest.mark.parametrize("when", range(6))
def test_a_step_that_is_interrupted_can_be_taken_again(model, monkeypatch, when):
    asked = [request(*range(1, 4 + 3 * row), seed=row) for row in range(3)]
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    expected = run_all(engine_of(model), asked)
    assert interrupted(model, asked, when) == expected


def test_an_interrupted_step_that_is_not_rolled_back_would_break_the_law(model, monkeypatch):
    asked = [request(*range(1, 4 + 3 * row), seed=row) for row in range(3)]
    expected = run_all(engine_of(model), asked)
    monkeypatch.setattr(KVCache, "truncate", lambda self, row, length: None)
    assert interrupted(model, asked, 2) != expected


def run_to_the_end(engine, handles):
    while not all(handle.is_finished for handle in handles):
        engine.step()


def interrupted(model, asked, when):
    """The answers where the user interrupts once, at the end of forward number `when`."""
    engine = engine_of(model)
    handles = [engine.submit(each) for each in asked]
    count = 0

    def interrupting(chunks, run):
        nonlocal count
        count += 1
        output = run()
        if count == when + 1:
            raise KeyboardInterrupt
        return output

    faulty = Faulty(engine, interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(engine, handles)
    engine._executors.of = faulty.of_engine
    return [tokens(handle) for handle in handles]
