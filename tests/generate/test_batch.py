"""Kept answers: what was interrupted goes on, and nothing is made twice."""

from __future__ import annotations

import pytest

from stepwell.generate.response_cache import ResponseCache

PROMPTS = ["a>", "bc>", "d", "hgf>", "a>b", "cc"]
SAMPLING = {"n": 2, "temperature": 0.9, "seed": 3, "max_new_tokens": 6, "logprobs": 1}


@pytest.fixture
def cache(tmp_path):
    with ResponseCache(tmp_path / "answers.sqlite") as cache:
        yield cache


def made(gen):
    """The prompts that the engine is asked for, as they come."""
    asked, submit = [], gen.engine.submit
    gen.engine.submit = lambda request, **rest: asked.append(request) or submit(request, **rest)
    return asked


def texts(answers):
    return [[(choice.text, choice.token_ids) for choice in choices] for choices in answers]


def test_kept_answers_are_those_that_were_made_and_are_not_made_again(gen, cache):
    expected = gen.generate_batch(PROMPTS, **SAMPLING)
    asked = made(gen)
    first = gen.generate_batch(PROMPTS, cache=cache, **SAMPLING)
    assert texts(first) == texts(expected)
    assert len(asked) == len(PROMPTS)
    assert gen.generate_batch(PROMPTS, cache=cache, **SAMPLING) == first
    assert gen.generate_batch(PROMPTS[::-1], cache=cache, **SAMPLING) == first[::-1]
    assert len(asked) == len(PROMPTS)
    assert cache.statistics.hits == 2 * 2 * len(PROMPTS)


def test_a_run_that_was_interrupted_makes_only_what_is_missing(gen, cache):
    expected = gen.generate_batch(PROMPTS, **SAMPLING)

    class Interrupting:
        def update(self, finished, tokens):
            if finished >= 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gen.generate_batch(PROMPTS, cache=cache, progress=Interrupting(), **SAMPLING)
    kept = len(cache)
    assert 4 <= kept < 2 * len(PROMPTS)
    asked = made(gen)
    assert texts(gen.generate_batch(PROMPTS, cache=cache, **SAMPLING)) == texts(expected)
    choices = [request.choices or range(request.sampling.n) for request in asked]
    assert sum(map(len, choices)) == 2 * len(PROMPTS) - kept
    assert gen.engine.num_free_rows == gen.engine.max_rows


def test_more_choices_make_only_the_new_ones(gen, cache):
    few = gen.generate_batch(PROMPTS, cache=cache, **SAMPLING)
    asked = made(gen)
    many = gen.generate_batch(PROMPTS, cache=cache, **{**SAMPLING, "n": 5})
    assert [choices[:2] for choices in many] == few
    assert {request.choices for request in asked} == {(2, 3, 4)}
    assert texts(many) == texts(gen.generate_batch(PROMPTS, **{**SAMPLING, "n": 5}))


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"temperature": 0.8}, {"top_k": 3}, {"max_new_tokens": 5}], ids=str
)
def test_another_request_is_made_anew(gen, cache, change):
    gen.generate_batch(PROMPTS, cache=cache, **SAMPLING)
    gen.generate_batch(PROMPTS, cache=cache, **{**SAMPLING, **change})
    assert cache.statistics.hits == 0


def test_changed_weights_are_another_model(gen, cache, model):
    gen.generate_batch(PROMPTS, cache=cache, **SAMPLING)
    weight = model.head.weight.data
    before = float(weight[0, 0])
    weight[0, 0] = before + 1
    try:
        gen.generate_batch(PROMPTS, cache=cache, **SAMPLING)
    finally:
        weight[0, 0] = before
    assert cache.statistics.hits == 0


def test_an_empty_cache_is_a_cache(gen, cache):
    assert not len(cache)
    gen.generate_batch(["a>"], cache=cache, n=1)
    assert len(cache) == 1
