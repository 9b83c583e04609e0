"""The study of heads: its corrupted texts are texts of the task, with the values that it says."""

from __future__ import annotations

import numpy as np
import pytest

import stepwell as sw
from benchmarks import renaming_heads as study
from stepwell.model.presets import gpt2_shape
from stepwell.model.transformer import Transformer
from stepwell.study.effects import EffectTable
from stepwell.tasks import Example, VariableRenaming

TASK = VariableRenaming(chains=4, renames=12)


@pytest.fixture(scope="module")
def texts() -> list[Example]:
    return [TASK.example_in("test", index) for index in range(6)]


@pytest.fixture(scope="module")
def gen() -> sw.TextGenerator:
    shape = gpt2_shape(
        width=32, num_layers=study.LAYERS, num_heads=study.HEADS, context_length=4 * TASK.renames
    )
    model = Transformer(shape.changed(vocab_size=TASK.tokenizer.vocab_size))
    model.initialize(0)
    return sw.TextGenerator(model, TASK.tokenizer)


def values_of(text: str) -> list[str]:
    """The value of each statement's new name, worked out statement by statement."""
    known: dict[str, str] = {}
    values = []
    for statement in text.strip(";").split(";"):
        source, name = statement.split(">")
        known[name] = known.get(source, source)
        values.append(known[name])
    return values


def test_a_rotated_text_has_the_rotated_values_where_names_decide(texts: list[Example]) -> None:
    for example in texts:
        values, others = values_of(example.text), values_of(study.rotated(example.text))
        assert values == [target.text for target in example.targets]
        assert others[: study.CHAINS] == values[: study.CHAINS]
        assert others[study.CHAINS :] == [
            study.rotated_value(value) for value in values[study.CHAINS :]
        ]


def test_pairs_end_where_a_value_of_the_depth_is_asked_for(texts: list[Example]) -> None:
    pairs = study.pairs_of(texts, 3)
    assert pairs.clean
    for clean, corrupt, right, wrong in zip(
        pairs.clean, pairs.corrupt, pairs.right, pairs.wrong, strict=True
    ):
        assert len(clean) == len(corrupt)
        assert (values_of(clean)[-1], values_of(corrupt)[-1]) == (right, wrong)


def test_heads_are_named_that_carry_enough_for_sure() -> None:
    effects = np.zeros((3, 4))
    effects[0, 3], effects[1, 0], effects[2, 1] = 0.9, 0.3, 0.12
    errors = np.full((3, 4), 0.02)
    errors[1, 0] = 0.1
    table = EffectTable(effects, errors, ("0", "1", "2", "3"), "", "")
    assert study.named({2: table}) == [(0, 3)]


def test_every_condition_is_asked_for_the_same_answers(
    texts: list[Example], gen: sw.TextGenerator
) -> None:
    asked = study.conditions(gen, texts[0], study.every_head())
    assert asked["the other heads patched"][1] == []
    assert set(asked["named heads zeroed"][1][0].heads) == {0, 1, 2}
    counts = study.rights(gen, texts, [(0, 3)])
    assert counts.keys() == asked.keys()
    assert (counts["intact"][..., 0] <= counts["intact"][..., 1]).all()
    assert all((each[..., 1] == counts["intact"][..., 1]).all() for each in counts.values())
