"""What is varied is what was written, and a trial's configuration differs in nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwell.errors import ConfigError, UsageError
from stepwell.model.presets import presets
from stepwell.train.config import TrainerConfig, differences
from stepwell.train.sweep.axes import (
    Choice,
    Span,
    configured,
    field_path,
    grid_values,
    parse_axes,
    parse_axis,
    trial_name,
)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("2,3,4", Choice((2, 3, 4))),
        ("3e-4,1e-3", Choice((3e-4, 1e-3))),
        ("cosine,wsd", Choice(("cosine", "wsd"))),
        ("true,false", Choice((True, False))),
        ("2,2,3", Choice((2, 3))),
        ("1..4", Span(1, 4, log=False, whole=True)),
        ("0.5..2", Span(0.5, 2, log=False, whole=False)),
        ("log:1e-4..1e-2", Span(1e-4, 1e-2, log=True, whole=False)),
    ],
)
def test_an_axis_is_what_was_written(text, axis):
    assert parse_axis("x", text) == axis
    assert parse_axis("x", axis.plain) == axis, "kept in a file, it is the same"


@pytest.mark.parametrize("text", ["4..1", "1..1", "log:0..1", "a..b", "1..nan"])
def test_a_range_that_cannot_be_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_axis("lr", text)
    assert "log:1e-4..1e-2" in caught.value.fix


@pytest.mark.parametrize("words", [["lr"], ["=1"], ["lr="], ["lr=1", "--lr=2"]])
def test_words_that_vary_nothing_are_refused(words):
    with pytest.raises(UsageError):
        parse_axes(words)


def test_a_grid_is_every_combination_once():
    axes = {"a": parse_axis("a", "1,2"), "b": parse_axis("b", "3..5")}
    values = grid_values(axes)
    assert sorted((each["a"], each["b"]) for each in values) == [
        (a, b) for a in (1, 2) for b in (3, 4, 5)
    ]


def test_a_range_without_steps_is_no_axis_of_a_grid():
    with pytest.raises(UsageError, match="range without steps"):
        grid_values({"lr": parse_axis("lr", "0.1..0.2")})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("steps", ("steps",)),
        ("batch-size", ("batch_size",)),
        ("--num-layers", ("model", "num_layers")),
        ("model.num_layers", ("model", "num_layers")),
        ("lr", ("optimizer", "lr")),
        ("optimizer.lr", ("optimizer", "lr")),
        ("facts", ("task", "facts")),
        ("seed", ("seed",)),
        ("data-seed", ("task", "seed")),
        ("dtype", ("precision",)),
        ("preset", ("model",)),
    ],
)
def test_a_field_is_found_by_the_name_of_its_flag(small, name, path):
    assert field_path(name, small()) == path


@pytest.mark.parametrize(
    ("name", "hint"),
    [("num_layer", "num_layers"), ("optimizer.rl", "lr"), ("optimizer", "such as")],
)
def test_a_field_that_is_none_gets_a_suggestion(small, name, hint):
    with pytest.raises(UsageError) as caught:
        field_path(name, small())
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["runs", "run_name", "threads", "device"])
def test_what_changes_nothing_that_is_computed_cannot_be_varied(small, name):
    with pytest.raises(UsageError, match="changes nothing"):
        field_path(name, small())


def test_a_trial_differs_in_what_its_values_say_and_nothing_else(small):
    base = small()
    values = {"steps": 7, "lr": 0.5, "facts": 9, "num_layers": 3, "seed": 4, "data_seed": 5}
    changed = configured(base, values)
    assert sorted(line.split(":")[0] for line in differences(base.plain(), changed.plain())) == [
        "model.num_layers",
        "optimizer.lr",
        "seed",
        "steps",
        "task.facts",
        "task.seed",
    ]
    assert configured(base, {}) == base


def test_what_follows_from_a_size_is_derived_anew(small):
    assert configured(small(), {"width": 32}).model.head_dim == 16
    assert small().model.changed(width=32).head_dim == 8, "it would have stayed"


def test_a_preset_is_a_shape_that_other_values_change(small):
    shape = configured(small(), {"num_layers": 5, "preset": "facts-small"}).model
    assert shape == presets["facts-small"].resized(num_layers=5)


def test_values_that_do_not_go_together_are_refused(small):
    with pytest.raises(ConfigError):
        configured(small(), {"num_heads": 3})


NAMES = st.sampled_from(["lr", "num_layers", "schedule", "optimizer.eps"])
VALUES = st.one_of(
    st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text()
)
ALLOWED = next(
    part.pattern
    for part in TrainerConfig.model_fields["run_name"].metadata
    if hasattr(part, "pattern")
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a machine that is busy
@given(st.dictionaries(NAMES, VALUES, min_size=1), st.dictionaries(NAMES, VALUES, min_size=1))
def test_trials_with_other_values_have_other_names_that_folders_can_have(one, other):
    for values in (one, other):
        name = trial_name(values)
        assert re.fullmatch(ALLOWED, name)
        assert Path(name).name == name
        assert len(name) < 200
    if repr(one) != repr(other) and one != other:
        assert trial_name(one) != trial_name(other)


def test_a_name_says_the_values():
    values = {"num_layers": 2, "lr": 1e-4, "schedule": "wsd", "pack": True}
    assert trial_name(values) == "num_layers=2+lr=0.0001+schedule=wsd+pack=true"
