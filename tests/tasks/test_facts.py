"""Facts: distinct keys, draws by rank, a batch from a table."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from support.timing import fastest

from stepwell.tasks import Facts, Task


def test_keys_are_distinct_and_spelled_as_promised() -> None:
    facts = Facts().all()
    assert len(facts) == len({fact.prompt for fact in facts}) == 2048
    assert all(re.fullmatch("[a-z]{4}>[a-z]{3}", fact.text) for fact in facts)
    assert all(len(fact.answer) == 3 for fact in facts)


def test_weights_are_the_probabilities_of_the_draws() -> None:
    task = Facts(facts=50, offset=3.0)
    facts = task.all()
    assert sum(fact.weight for fact in facts) == pytest.approx(1, abs=1e-12)
    inverse = [1 / (rank + 3.0) for rank in range(50)]
    assert [f.weight for f in facts] == pytest.approx([x / sum(inverse) for x in inverse])
    draws = Counter(task.example_in("train", i).text for i in range(20_000))
    for fact in facts:
        expected = 20_000 * fact.weight
        assert abs(draws[fact.text] - expected) < 4.5 * expected**0.5


def test_each_depth_holds_twice_as_many_facts_as_the_one_before() -> None:
    counts = Counter(fact.targets[0].depth for fact in Facts(facts=256).all())
    assert counts == Counter({0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 32, 7: 64, 8: 128})


def test_every_fact_is_in_every_split() -> None:
    task = Facts(facts=5)
    texts = {
        split: {task.example_in(split, i).text for i in range(100)} for split in ("train", "test")
    }
    assert texts["train"] == texts["test"] == {fact.text for fact in task.all()}


def test_another_seed_has_other_facts() -> None:
    assert not {f.prompt for f in Facts(facts=20).all()} & {
        f.prompt for f in Facts(facts=20, seed=1).all()
    }


def test_a_batch_asks_for_the_three_letters_and_stops_at_the_last_label() -> None:
    task = Facts()
    batch = task.batch("train", range(100))
    assert batch.ids.shape == (100, 7)
    assert batch.labels[:, :4].eq(-100).all()
    assert batch.labels[:, 4:6].equal(batch.ids[:, 5:])


@pytest.mark.parametrize("indices", [range(1000), [3], [7, 7, 1], np.arange(5)])
def test_the_table_equals_one_example_after_the_other(indices: list[int]) -> None:
    task = Facts()
    batch, reference = task.batch("train", indices), Task.batch(task, "train", indices)
    for name in ("ids", "labels", "depths"):
        assert getattr(batch, name).equal(getattr(reference, name))
    assert not batch.ids.equal(Facts(seed=1).batch("train", indices).ids)


def test_a_batch_of_512_takes_less_than_3_ms() -> None:
    """A tenth of one where nothing else runs."""
    task = Facts()
    steps = itertools.count()

    def batch() -> None:
        step = next(steps)
        task.batch("train", range(512 * step, 512 * step + 512))

    assert fastest(batch, enough=0.003) < 0.003
