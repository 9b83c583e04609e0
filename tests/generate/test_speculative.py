"""Speculation in the engine: who may draft, what a failing drafter costs, and when drafting stops.

That drafts move no bit in strict mode is a law of its own; here the default mode, the rejection
rule, and everything that goes wrong.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from support.engines import engine_of, is_strict
from support.speculation import answer, request, run_all, some_requests

from stepwell.errors import ConfigError
from stepwell.generate import drafters as drafters_module
from stepwell.generate import engine as engine_module
from stepwell.generate.draft import MAX_DRAFT, Pace
from stepwell.generate.drafters import LookupDrafter, ModelDrafter
from stepwell.generate.executor import Executors, Output
from stepwell.generate.noise import Purpose
from stepwell.generate.speculative import Speculation
from stepwell.generate.text import TextGenerator
from stepwell.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("executors")


@pytest.fixture
def lengths(monkeypatch):
    """Draft lengths are drawn at random instead of measured."""
    chosen = random.Random(0)
    monkeypatch.setattr(Pace, "choose", lambda *_: chosen.choice([1, 2, 4, MAX_DRAFT]))


@pytest.fixture(scope="session")
def other(model):
    """Other weights over the same vocabulary."""
    return remade(model, seed=5)


def remade(model, *, seed=0, **shape):
    made = Transformer(model.config.changed(**shape))
    made.initialize(seed)
    return made.eval()


class Watched:
    """What an engine drafts and keeps, step by step."""

    def __init__(self, engine):
        self.steps = []
        observe = engine._speculation.observe

        def watch(sampled, drafts, seconds):
            steps = [(len(drafts[each].ids), len(sampled[each]) - 1) for each in drafts]
            self.steps += steps
            observe(sampled, drafts, seconds)

        engine._speculation.observe = watch

    @property
    def num_drafted(self):
        return sum(drafted for drafted, _ in self.steps)

    @property
    def num_kept(self):
        return sum(kept for _, kept in self.steps)


# What is refused


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("look-up", "draft is 'look-up', expected a model, a finished draft or 'lookup'"),
        (3, "draft is 3"),
        ([], r"draft is \[\]"),
    ],
)
def test_what_cannot_draft_is_refused(model, draft, message):
    engine = engine_of(model)
    for verb in (engine.check, engine.submit):
        with pytest.raises(ConfigError, match=message):
            verb(request(), draft=draft)
    assert engine.step() == []


def test_a_draft_model_of_another_vocabulary_is_refused(model):
    with pytest.raises(ConfigError, match="a vocabulary of 17 tokens, the model one of 16"):
        engine_of(model).submit(request(), draft=remade(model, vocab_size=17))


def test_a_rule_must_be_known_and_keep_what_strict_mode_promises(model):
    with pytest.raises(ConfigError, match="Did you mean 'rejection'"):
        engine_of(model).submit(request(), draft="lookup", draft_rule="reject")
    if is_strict():
        with pytest.raises(ConfigError, match="keeps an answer's distribution but not its tokens"):
            engine_of(model).submit(request(), draft="lookup", draft_rule="rejection")


# The same answers


@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"top_k": 4, "repetition_penalty": 2}])
@pytest.mark.parametrize("drafter", ["itself", "other", "lookup"])
def test_an_answer_is_the_same_with_drafts(model, other, lengths, drafter, params):
    draft = {"itself": model, "other": other, "lookup": "lookup"}[drafter]
    asked = some_requests(**params)
    engine = engine_of(model)
    watched = Watched(engine)
    assert run_all(engine, asked, draft) == run_all(engine_of(model), asked)
    assert watched.num_drafted > 0


def test_a_drafter_with_the_targets_weights_is_never_rejected(model, lengths):
    engine = engine_of(model)
    watched = Watched(engine)
    run_all(engine, some_requests(), model)
    assert watched.num_kept == watched.num_drafted > 20


def test_a_drafter_with_noise_of_its_own_would_be_rejected(model, lengths, monkeypatch):
    monkeypatch.setattr(drafters_module, "_purpose", lambda sequence: Purpose.DRAFT)
    engine = engine_of(model)
    watched = Watched(engine)
    run_all(engine, some_requests(), model)
    assert watched.num_kept < watched.num_drafted


def test_no_draft_is_longer_than_what_the_answer_may_still_use(model, monkeypatch):
    monkeypatch.setattr(Pace, "choose", lambda *_: MAX_DRAFT)
    engine = engine_of(model)
    watched = Watched(engine)
    [(ids, _, _)] = run_all(engine, [request(max_new_tokens=7)], model)
    assert len(ids) == 7
    # the prompt's own token, one step that is only measured, then a draft for all that is left
    assert watched.steps == [(4, 4)]


@pytest.mark.parametrize("params", [{}, {"stop": [">", " a", "b"]}, {"n": 3}], ids=str)
@pytest.mark.parametrize("draft", ["itself", "lookup"])
def test_text_streams_and_batches_are_the_same_with_drafts(
    model, tokenizer, lengths, draft, params
):
    gen = TextGenerator(model, tokenizer, strict=is_strict(), max_rows=4)
    source = model if draft == "itself" else draft
    params = {"seed": 3, "max_new_tokens": 24, "logprobs": None, **params}
    prompts = ["ab ab ab", "cd>cd>c", "a"]
    expected = gen.generate_batch(prompts, **params)
    assert gen.generate_batch(prompts, draft=source, **params) == expected
    ends = [
        piece.completion
        for piece in gen.generate_stream(prompts[0], draft=source, **params)
        if piece.completion is not None
    ]
    assert sorted(ends, key=expected[0].index) == expected[0]
    if "n" not in params:
        assert gen.generate(prompts[0], draft=source, **params) == expected[0][0]
    assert gen.engine.num_free_rows == 4


# A drafter that reads on, runs out of room, fails


def test_a_drafter_reads_a_long_prompt_in_pieces_and_begins_with_what_it_read_before(
    long_model, lengths, monkeypatch
):
    monkeypatch.setattr(drafters_module, "CATCH_UP", 64)
    asked = request(*[1 + place % 9 for place in range(150)], max_new_tokens=20)
    expected = run_all(engine_of(long_model), [asked])
    engine, drafting = engine_of(long_model), []
    for _ in range(2):
        watched = Watched(engine)
        assert run_all(engine, [asked], long_model) == expected
        drafting.append(watched.num_kept)
    assert drafting[1] > drafting[0] > 0  # two steps earlier: 128 tokens are in its cache


def test_a_drafter_with_a_shorter_context_stops_where_that_ends(model, lengths):
    short = remade(model, context_length=16)
    short.load_state_dict(model.state_dict())
    engine, asked = engine_of(model), [request(max_new_tokens=30)]
    watched = Watched(engine)
    assert run_all(engine, asked, short) == run_all(engine_of(model), asked)
    assert 0 < watched.num_drafted < 30


def test_a_cache_without_room_for_drafts_goes_without(long_model, lengths):
    block_bytes = 2 * 2 * 2 * 8 * 4 * 64
    asked = [request(*range(1, 11), seed=row, max_new_tokens=90) for row in range(3)]
    engine = engine_of(long_model, kv_cache_bytes=3 * block_bytes)
    handles = [engine.submit(each, draft=long_model) for each in asked]
    found = [answer(handle) for handle in handles]
    assert engine.num_preempted > 0
    assert [reason for _, reason, _ in found] == ["length"] * 3


@pytest.mark.parametrize("when", range(6))
def test_a_drafter_that_raises_loses_only_drafts(model, other, lengths, monkeypatch, caplog, when):
    asked = some_requests()
    expected = run_all(engine_of(model), asked)
    sample, calls = ModelDrafter._extend, itertools.count()

    def failing(self, *rest):
        sample(self, *rest)
        if next(calls) == when:
            raise RuntimeError("a kernel failed")

    monkeypatch.setattr(ModelDrafter, "_extend", failing)
    engine = engine_of(model)
    assert run_all(engine, asked, other) == expected
    assert "Drafting failed, 4 rows go on without: a kernel failed" in caplog.text
    assert caplog.text.count("Drafting failed") == 1


def test_a_drafter_that_puts_out_nan_loses_only_drafts(model, lengths):
    broken = remade(model, seed=5)
    with torch.no_grad():
        broken.final_norm.weight.fill_(torch.nan)
    asked = some_requests()
    engine = engine_of(model)
    watched = Watched(engine)
    assert run_all(engine, asked, broken) == run_all(engine_of(model), asked)
    assert watched.num_drafted == 0


@pytest.mark.parametrize("when", range(2, 12, 3))
@pytest.mark.parametrize("draft", ["itself", "lookup"])
def test_a_step_that_is_interrupted_can_be_taken_again(model, lengths, monkeypatch, draft, when):
    asked = some_requests(3)
    expected = run_all(engine_of(model), asked)
    engine, calls = engine_of(model), itertools.count()
    handles = [engine.submit(each, draft=model if draft == "itself" else draft) for each in asked]
    chosen = Executors.of

    def interrupting(self, *asked_for):
        executor = chosen(self, *asked_for)

        class Once:
            name = executor.name

            def run(self, *given):
                output = executor.run(*given)
                if next(calls) == when:
                    raise KeyboardInterrupt
                return output

        return Once()

    monkeypatch.setattr(Executors, "of", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(engine, handles)
    run_to_the_end(engine, handles)
    assert [answer(handle) for handle in handles] == expected


def run_to_the_end(engine, handles):
    while not all(handle.is_finished for handle in handles):
        engine.step()


def test_logits_that_are_not_finite_end_a_request_after_what_stays_of_its_draft(
    model, lengths, monkeypatch
):
    asked = some_requests(2)
    expected = run_all(engine_of(model), asked)
    engine = engine_of(model)
    handles = [engine.submit(each, draft=model) for each in asked]
    victim, chosen = handles[1].sequences[0], engine._executors.of
    bad = victim.position + 6  # the first position whose logits are spoilt

    class Poisoned:
        def __init__(self, executor):
            self.executor, self.name = executor, executor.name

        def run(self, chunks):
            output = self.executor.run(chunks)
            logits = output.logits.clone()
            places = [
                (chunk.row, engine._cache.length(chunk.row) - back)
                for chunk in chunks
                for back in range(chunk.wanted - 1, -1, -1)
            ]
            logits[[row == victim.row and end >= bad for row, end in places]] = torch.nan
            return Output(logits)

    engine._executors.of = lambda *asked_for: Poisoned(chosen(*asked_for))
    found = [answer(handle) for handle in handles]
    assert found == [expected[0], (expected[1][0][:6], "error", 6)]


# What is kept of drafters


def test_drafters_are_kept_for_the_next_request_until_another_takes_their_place(model, other):
    speculation = engine_of(model)._speculation
    assert isinstance(speculation, Speculation)
    known = speculation.drafter(other)
    assert isinstance(known, ModelDrafter)
    assert speculation.drafter(other) is known
    assert speculation.drafter(None) is None
    assert isinstance(speculation.drafter("lookup"), LookupDrafter)
    assert speculation.drafter(other) is not known


def test_a_drafter_in_use_is_kept(model, other, lengths):
    engine = engine_of(model)
    handle = engine.submit(request(max_new_tokens=20), draft=other)
    for _ in range(3):
        engine.step()
    busy = handle.drafter
    engine.submit(request(), draft="lookup")
    assert not busy.is_idle
    assert engine._speculation.drafter(other) is busy
    handle.cancel()
    assert busy.is_idle


def test_a_chunk_of_prompt_is_read_beside_rows_with_drafts(model, lengths, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    asked = some_requests()
    assert run_all(engine_of(model), asked, "lookup") == run_all(engine_of(model), asked)
