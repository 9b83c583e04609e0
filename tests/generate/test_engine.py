"""The engine: what it refuses, how rows come and go, and that a step that fails loses nothing."""

from __future__ import annotations

import pytest
from support.engines import engine_of, is_strict, request, run_all, tokens

from stepwell.errors import CacheError, ConfigError, HookError, PromptError
from stepwell.generate import engine as engine_module
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.model.hooks import Call
from stepwell.model.interventions import ZeroHeads

CONTEXT, V = 64, 16  # of the model in conftest


pytestmark = pytest.mark.usefixtures("executors")


class Own(ZeroHeads):
    """An intervention with a function of its own, which could not travel."""

    @property
    def edits(self):
        return (Call("logits", -1, abs),)


# What is refused


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (request(*[1] * CONTEXT), PromptError, "has 64 tokens, but the model's context holds 64"),
        (request(1, V), PromptError, "Token id 16 is not in the model's vocabulary of 16"),
        (request(-1), PromptError, "Token id -1 is not"),
        (request(banned_tokens=[V]), ConfigError, "banned_tokens: 16 is no token"),
        (request(forced_tokens=[1, V]), ConfigError, "forced_tokens: 16 is no token"),
        (request(think_budget=3), ConfigError, "roles think_start and think_end"),
        (request(interventions=[ZeroHeads({2: [0]})]), HookError, "layers 0..1, not 2"),
        (request(interventions=["zero"]), HookError, "str is none"),
        (request(interventions=[Call("logits", -1, abs)]), HookError, "Call is none"),
        (request(interventions=[Own({})]), HookError, "Own makes edits that the kernels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_cannot_run_is_refused_before_it_is_queued(model, asked, error, message):
    engine = engine_of(model)
    with pytest.raises(error) as caught:
        engine.submit(asked)
    assert message in str(caught.value)
    assert engine.step() == []


def test_the_newline_guard_needs_to_know_the_newlines(model):
    with pytest.raises(ConfigError, match="no newline tokens are known"):
        engine_of(model, newline_ids=None).submit(request(newline_run_limit=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "max_rows is 0"),
        ({"eos_ids": [V]}, "16 is no token"),
        ({"think_ids": [1, -2]}, "-2 is no token"),
        ({"kv_cache_bytes": 100}, "kv_cache_bytes is 100, but one block"),
    ],
    ids=str,
)
def test_an_engine_that_cannot_be_is_refused(model, options, message):
    with pytest.raises(ConfigError) as caught:
        engine_of(model, **options)
    assert message in str(caught.value)


BLOCK_BYTES = 2 * 2 * 2 * 8 * 4 * 64  # keys and values, layers, heads, width, float32, tokens


def test_a_request_that_the_cache_cannot_hold_is_refused(long_model):
    engine = engine_of(long_model, kv_cache_bytes=2 * BLOCK_BYTES + 1)
    engine.check(request(*[1] * 100, max_new_tokens=29))  # the last token is never computed
    with pytest.raises(CacheError, match="may take 130 tokens, but the cache holds 128"):
        engine.submit(request(*[1] * 100, max_new_tokens=30))


def test_where_the_cache_is_full_the_youngest_waits_and_goes_on_as_if_it_had_not(long_model):
    asked = [request(*range(1, 11), seed=row, max_new_tokens=100) for row in range(3)]
    expected = run_all(engine_of(long_model), asked)
    engine = engine_of(long_model, kv_cache_bytes=3 * BLOCK_BYTES)
    handles = [engine.submit(each) for each in asked]
    found = [tokens(handle) for handle in handles]
    assert engine.num_preempted > 0
    assert [reason for _, reason in found] == ["length"] * 3
    if is_strict():
        assert found == expected
    assert engine.num_free_rows == 4


def test_a_prompt_that_was_computed_before_is_found_in_the_cache(long_model):
    prompt = [1 + place % 9 for place in range(150)]
    engine = engine_of(long_model)
    asked = [request(*prompt, 1), request(*prompt, 2), request(*prompt, 1)]
    asked.append(Request(asked[0].prompt_ids, asked[0].sampling, cache_salt="another client"))
    asked.append(request(*prompt, 1, interventions=[ZeroHeads({0: [1]})]))
    ends = []
    for each in asked:
        *_, end = engine.submit(each)
        ends.append(end)
    assert [end.usage.cached_tokens for end in ends] == [0, 128, 128, 0, 0]


def test_an_answer_is_found_in_the_cache_as_well(long_model):
    """The next turn of a conversation begins with this one."""
    engine, asked = engine_of(long_model), request(*[3] * 70, max_new_tokens=80)
    ids, _ = tokens(engine.submit(asked))
    turn = request(*asked.prompt_ids, *ids, 5)
    again = engine.submit(turn)
    found = tokens(again)
    *_, end = engine.submit(turn)
    assert end.usage.cached_tokens == 128
    assert again.sequences[0].num_cached == 128
    if is_strict():
        assert found == tokens(engine_of(long_model).submit(turn))
    other = request(*asked.prompt_ids, *ids[:30], 9, *ids[31:], 5)  # negative control
    *_, end = engine.submit(other)
    assert end.usage.cached_tokens == 64


def test_a_request_that_takes_too_long_is_ended(model, monkeypatch):
    now = 100.0
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: now)
    engine = engine_of(model)
    timed = engine.submit(Request((1, 2), SamplingParams(max_new_tokens=9), deadline_s=5))
    other = engine.submit(request(max_new_tokens=9))
    engine.step()
    now = 105.0
    assert timed in engine.step()
    ids, reason = tokens(timed)
    assert (len(ids), reason) == (1, "timeout")
    assert len(tokens(other)[0]) == 9
    assert engine.num_free_rows == 4


# How answers end


def test_an_answer_ends_with_its_length_or_the_context(model):
    engine = engine_of(model)
    asked = [request(max_new_tokens=5), request(*[1] * 60, max_new_tokens=50)]
    assert [(len(ids), reason) for ids, reason in run_all(engine, asked)] == [
        (5, "length"),
        (4, "length"),
    ]
    assert engine.num_free_rows == 4


def test_an_end_of_sequence_token_ends_the_answer_and_is_its_last(model):
    [(free, _)] = run_all(engine_of(model), [request(seed=3)])
    end = free[3]
    [(ended, reason), (ignored, _)] = run_all(
        engine_of(model, eos_ids=[end, 15]), [request(seed=3), request(seed=3, ignore_eos=True)]
    )
    assert (ended, reason) == (free[: free.index(end) + 1], "stop")
    assert ignored == free


def test_the_models_own_end_of_sequence_is_the_default(model):
    assert InferenceEngine(model).eos_ids == frozenset(model.config.eos_ids)


def test_a_think_section_ends_when_its_budget_is_spent(model):
    engine = engine_of(model, think_ids=[8, 9])
    asked = request(1, 8, 2, think_budget=3, banned_tokens=[9], max_new_tokens=8)
    [(ids, _)] = run_all(engine, [asked])
    assert ids.index(9) == 2
    assert 9 not in ids[3 : 3 + 3]


# Rows come and go


def test_more_requests_than_rows_are_all_answered(model):
    asked = [request(*range(1, 2 + size % 7), seed=size) for size in range(11)]
    for max_rows in (1, 3):
        engine = engine_of(model, max_rows=max_rows)
        assert [len(ids) for ids, _ in run_all(engine, asked)] == [6] * 11
        assert engine.num_free_rows == max_rows


def test_requests_are_admitted_in_order(model):
    engine = engine_of(model, max_rows=2)
    handles = [engine.submit(request(max_new_tokens=2)) for _ in range(5)]
    assert engine.step() == handles[:2]
    engine.step()
    assert engine.step() == handles[2:4]


def test_choices_share_one_pass_over_their_prompt(model):
    passed = []
    engine = engine_of(model)
    Faulty(engine, lambda chunks, run: (passed.append(sum(len(c.ids) for c in chunks)), run())[1])
    handle = engine.submit(request(*range(1, 11), n=4, max_new_tokens=3))
    answers = [list(handle), engine.num_free_rows]
    # the prompt; the first answer's token and the others' last prompt token; and so on
    assert passed == [10, 4, 4, 3]
    assert len(answers[0]) == 4 * (3 + 1)
    assert answers[1] == 4


def test_choices_that_wait_for_their_prompt_let_others_pass(model):
    engine = engine_of(model)
    several, single = engine.submit(request(n=3)), engine.submit(request(*[2] * 9))
    assert engine.step() == [several, single]
    assert [sequence.row >= 0 for sequence in several.sequences] == [True, False, False]
    engine.step()
    assert [sequence.row >= 0 for sequence in several.sequences] == [True, True, True]


def test_long_prompts_take_turns_in_the_order_of_their_admission(model, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    monkeypatch.setattr(engine_module, "PREFILL_BUDGET", 8)
    engine = engine_of(model, max_rows=3)
    first = engine.submit(request(max_new_tokens=1))
    late = [engine.submit(request(*[size] * 9, max_new_tokens=1)) for size in (4, 5, 6)]
    engine.step()
    assert first.is_finished  # row 0 is free now, and the third long prompt gets it
    for _ in range(3):
        engine.step()
    assert [handle.is_finished for handle in late] == [True, True, False]


@pytest.mark.parametrize("broken", [False, True])
def test_an_answer_that_failed_is_not_found(long_model, monkeypatch, broken):
    engine, asked = engine_of(long_model), request(*[3] * 70, max_new_tokens=70)
    handle = engine.submit(asked)
    while len(handle.sequences[0].generated) < 65:
        engine.step()
    with monkeypatch.context() as patch:
        if broken:
            patch.setattr(engine._executors, "of", lambda *_: None)  # nothing that can run
        ids, reason = tokens(handle)
    assert reason == ("error" if broken else "length")
    *_, end = engine.submit(request(*asked.prompt_ids, *ids[:65], 5))
    assert end.usage.cached_tokens == (64 if broken else 128)


def test_a_request_can_be_cancelled_wherever_it_is(model):
    engine = engine_of(model, max_rows=1)
    running, waiting = engine.submit(request()), engine.submit(request())
    engine.step()
    for handle, length in ((waiting, 0), (running, 1)):
        handle.cancel()
        handle.cancel()
        ids, reason = tokens(handle)
        assert (len(ids), reason, handle.is_finished) == (length, "cancelled", True)
    assert engine.num_free_rows == 1
    assert engine.step() == []


def test_one_choice_can_be_cancelled(model):
    engine = engine_of(model)
    handle = engine.submit(request(n=2))
    engine.step()
    handle.cancel(1)
    events = list(handle)
    ends = {event.choice: event.reason for event in events if isinstance(event, FinishedEvent)}
    assert ends == {0: "length", 1: "cancelled"}


def test_leaving_a_handles_events_lets_the_request_go_on(model):
    engine = engine_of(model)
    left, other = engine.submit(request(seed=1)), engine.submit(request(seed=2))
    first = next(iter(left))
    tokens(other)
    assert left.is_finished
    rest = [event.token_id for event in left if isinstance(event, TokenEvent)]
    assert [first.token_id, *rest] == tokens(engine.submit(request(seed=1)))[0]


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


def test_the_weights_are_hashed_once_and_only_for_noise(model, monkeypatch):
    calls = []
    fingerprint = engine_module.model_fingerprint
    monkeypatch.setattr(
        engine_module, "model_fingerprint", lambda of: calls.append(of) or fingerprint(of)
    )
    engine = engine_of(model)
    run_all(engine, [request(temperature=0)])
    assert calls == []
    run_all(engine, [request(), request()])
    assert calls == [model]
