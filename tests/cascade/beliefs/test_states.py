"""Inputs by state: which are told, which head reads them, and what a prompt teaches."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.cascade.beliefs.features import Seen, select
from stepwell.cascade.beliefs.states import Layout, Standards

FEATURES = select(["prompt_entropy", "length", "agreement"])


@pytest.mark.parametrize("num_stages", [1, 2, 4, 5, 6])
def test_every_state_has_a_head_and_every_head_is_taught_by_its_states(num_stages: int) -> None:
    layout = Layout(FEATURES, num_stages)
    every = range(1 << num_stages)
    assert {layout.head_of(state) for state in every} == set(range(layout.num_heads))
    assert layout.num_heads == (len(every) if num_stages <= 4 else num_stages + 1)
    states, heads = layout.lessons(500, np.random.default_rng(0))
    assert states.shape == (500, len(heads))
    assert set(heads) == set(range(layout.num_heads))
    for column, head in zip(states.T, heads, strict=True):
        assert {layout.head_of(int(state)) for state in column} == {head}
    for last in range(num_stages + 1):
        assert (states == (1 << last) - 1).any(axis=1).all()  # none skipped, of every prompt
    assert len(np.unique(states)) == len(every)


def test_an_input_is_told_in_a_state_only_if_its_stage_ran() -> None:
    layout = Layout(FEATURES, 3)
    for state in range(8):
        run = [state >> stage & 1 == 1 for stage in range(3)]
        assert layout.masks[state, 0]
        assert layout.masks[state, 1:4].tolist() == run
        np.testing.assert_array_equal(layout.masks[state, 4:], FEATURES.known(state, 3))


def test_regressions_read_flags_only_where_states_share_a_head() -> None:
    own, shared = Layout(FEATURES, 3), Layout(FEATURES, 5)
    for head in range(own.num_heads):
        used = own.used(head)
        assert used[0] == 0
        assert not ((used > 0) & (used < 4)).any()
        np.testing.assert_array_equal(used[1:] - 4, np.flatnonzero(FEATURES.known(head, 3)))
    assert shared.used(3)[:3].tolist() == [0, 1, 2]  # the constant, and whether 1 and 2 ran


def seen(rows: list[float]) -> Seen:
    values = np.array(rows)[:, None]
    blank = np.full((len(rows), 1, 1, 2), np.nan)
    return Seen(FEATURES, values, np.zeros((len(rows), 1, 1)), blank)


def test_standards_are_of_what_is_known_and_count_weights() -> None:
    standards = Standards.of(seen([1.0, 3.0, np.nan, 99.0]), np.array([1.0, 1.0, 5.0, 0.0]))
    np.testing.assert_allclose(standards.centre, [2.0, 0.0])
    np.testing.assert_allclose(standards.scale, [1.0, 1.0])  # a constant is not scaled
    inputs = standards.apply(seen([1.0, 2.5, np.nan, 1e9, -np.inf]).flat())
    np.testing.assert_allclose(inputs[:, 0], [-1.0, 0.5, 0.0, 4.0, -4.0])
    never = Standards.of(seen([np.nan]), np.ones(1))
    np.testing.assert_allclose(never.apply(seen([3.0]).flat()), [[3.0, 0.0]])
