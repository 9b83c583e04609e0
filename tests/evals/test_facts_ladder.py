"""The demonstration's facts: splits that share nothing, strata, weights, difficulty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.prepare import TURNS
from stepwell.evals.facts_ladder import FactsData, ask_all, facts_ladder
from stepwell.tasks.facts import Facts

TASK = Facts(facts=600)


@pytest.fixture
def data(answer: Callable[..., Any], scripted: Callable[..., Any]) -> FactsData:
    """A small stage that knows the first 200 facts, a large one that knows all."""
    script = {
        fact.prompt: (answer(fact.answer if rank < 200 else "zzz", [-0.1]), fact.answer)
        for rank, fact in enumerate(TASK.all())
    }
    small = scripted("small", {prompt: known for prompt, (known, _) in script.items()})
    large = scripted(
        "large", {prompt: answer(text, [-0.1]) for prompt, (_, text) in script.items()}
    )
    told: list[str] = []
    found = ask_all(TASK, [small, large], facts_ladder(), told.append)
    assert told == ["small", "large"]
    assert all(sampling == facts_ladder().sampling for _, sampling in small.asked)
    return found


def test_splits_share_no_fact_and_leave_none_out(data: FactsData) -> None:
    keys = [{fact.prompt for fact in data.examples_of(split)} for split in TURNS]
    assert [len(each) for each in keys] == [200, 200, 200]
    assert set.union(*keys) == {fact.prompt for fact in TASK.all()}


def test_splits_are_stratified_by_rank(data: FactsData) -> None:
    """Of any three neighbouring ranks each split has one; random splits would differ in weight."""
    rank = {fact.prompt: place for place, fact in enumerate(TASK.all())}
    for split in TURNS:
        ranks = [rank[fact.prompt] for fact in data.examples_of(split)]
        assert ranks == sorted(ranks)
        assert set(np.diff(ranks)) == {3}
    good = [np.average(data.split(split).good[:, 0]) for split in TURNS]
    assert max(good) - min(good) <= 0.01


def test_each_fact_weighs_as_often_as_it_is_drawn(data: FactsData) -> None:
    share = 1 / (np.arange(TASK.facts) + TASK.offset)
    share /= share.sum()
    np.testing.assert_allclose(data.collected.weights, share, rtol=1e-9)
    for place, split in enumerate(TURNS):
        part = data.split(split)
        np.testing.assert_allclose(part.weights, share[place :: len(TURNS)], rtol=1e-9)
        texts = [fact.answer for fact in data.examples_of(split)]
        assert list(part.texts[1]) == texts
        assert (part.good[:, 1] == 1).all()


def test_facts_are_drawn_as_often_as_they_are_asked(data: FactsData) -> None:
    """Means over the draws are the weighted means over the facts, which plain ones are not."""
    drawn, test = data.drawn("test"), data.split("test")
    examples = data.examples_of("test")
    assert len(drawn) == len(examples)
    share = test.weights / test.weights.sum()
    counts = Counter(fact.prompt for fact in drawn)
    expected = share * len(drawn)
    for fact, count in zip(examples, expected, strict=True):
        assert abs(counts[fact.prompt] - count) < 1
    known = {fact.prompt: good for fact, good in zip(examples, test.good[:, 0], strict=True)}
    assert np.mean([known[fact.prompt] for fact in drawn]) == pytest.approx(
        float(share @ test.good[:, 0]), abs=0.01
    )
    assert abs(test.good[:, 0].mean() - share @ test.good[:, 0]) > 0.2
    ranks = [examples.index(fact) for fact in drawn]
    assert ranks != sorted(ranks)
    assert drawn == data.drawn("test") != data.drawn("test", seed=1)


def test_difficulty_is_the_rank(data: FactsData) -> None:
    groups, counts, right = data.by_difficulty()
    assert groups == ["ranks 1 to 128", "ranks 129 to 512", "ranks 513 to 600"]
    assert counts == [128, 384, 88]
    np.testing.assert_allclose(right[:, 0], [1.0, 72 / 384, 0.0])
    np.testing.assert_allclose(right[:, 1], 1.0)


def test_the_ladder_file_is_whole_and_relative() -> None:
    ladder = facts_ladder()
    assert LadderConfig.parse(ladder.model_dump(mode="json", by_alias=True)) == ladder
    assert [stage.name for stage in ladder.stages] == ["small", "middle", "large"]
    assert all(stage.model.startswith("../") for stage in ladder.stages)
    assert ladder.policy.lam == "auto"
    assert ladder.sampling["max_new_tokens"] == Facts().max_answer_tokens
