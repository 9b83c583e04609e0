"""Features by hand, in groups that can be chosen, and what each state of a ladder makes known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from support.timing import fastest

from stepwell.cascade.beliefs.features import FEATURE_GROUPS, FeatureSet, Seen, select
from stepwell.cascade.stage import Observe, Reply, TopLogprobs
from stepwell.errors import ConfigError, DataError, ShapeError
from stepwell.generate.request import Completion, Usage

EVERYTHING = select(["all"])


def reply(
    logprobs: Sequence[float],
    text: str = "",
    *,
    tops: Sequence[TopLogprobs] = (),
    entropy: float = math.nan,
) -> Reply:
    ids = tuple(range(len(logprobs)))
    completion = Completion(text, ids, "stop", Usage(1, len(ids)), tuple(logprobs))
    return Reply(completion, top_logprobs=tuple(tops), prompt_entropy=entropy)


def of_answer(features: FeatureSet, told: Reply) -> dict[str, float]:
    return dict(zip(features.answer_names, features.answer_features([told])[0], strict=True))


def test_features_of_an_answer_by_hand() -> None:
    logprobs = [-0.5, -0.1, -2.0, -0.2, -0.3]
    leads = [3.0, 1.0, 2.0, 2.0, 2.0]
    tops = [((4, -0.1), (7, -0.1 - lead), (1, -9.0)) for lead in leads]
    row = of_answer(EVERYTHING, reply(logprobs, tops=tops))
    assert row["logprob_minimum"] == -2.0
    assert row["logprob_median"] == pytest.approx(-0.3)
    assert row["logprob_quantile_25"] == pytest.approx(np.quantile(logprobs, 0.25))
    assert row["logprob_quantile_10"] == pytest.approx(np.quantile(logprobs, 0.1))
    assert row["logprob_mean"] == pytest.approx(-0.62)
    assert row["probability_minimum"] == pytest.approx(np.exp(-2.0))
    assert row["probability_geometric_mean"] == pytest.approx(np.exp(-0.62))
    assert row["log_length"] == pytest.approx(np.log(6))
    assert row["margin_minimum"] == pytest.approx(1.0)
    assert row["margin_mean"] == pytest.approx(2.0)


def test_features_of_a_prompt_by_hand() -> None:
    rows = EVERYTHING.prompt_features(["1+23=b", "", "zz"])
    first = dict(zip(EVERYTHING.prompt_names, rows[0], strict=True))
    assert first["prompt_log_length"] == pytest.approx(math.log(7))
    assert first["prompt_digits"] == pytest.approx(3 / 6)
    assert first["prompt_letters"] == pytest.approx(1 / 6)
    assert first["prompt_distinct"] == 1.0
    assert np.isnan(first["prompt_entropy"])
    assert rows[1, 0] == 0.0
    assert np.isnan(rows[1, 1:]).all()
    assert rows[2, 3] == 0.5


def test_quantiles_do_not_move_with_length_and_sums_do() -> None:
    once = np.array([-0.5, -0.1, -2.0, -0.2, -0.3, -0.3, -0.1])
    short, long = (of_answer(EVERYTHING, reply(each.tolist())) for each in (once, np.tile(once, 8)))
    for name in ("logprob_minimum", "logprob_median", "logprob_mean"):
        assert abs(long[name] - short[name]) < 1e-12
    assert abs(8 * once.sum() - once.sum()) > 10


def test_features_of_empty_and_impossible_answers() -> None:
    empty = of_answer(EVERYTHING, reply([]))
    assert empty.pop("log_length") == 0.0
    assert np.isnan(list(empty.values())).all()
    sure = ((0, 0.0), (1, -math.inf))
    row = of_answer(EVERYTHING, reply([-math.inf, -1.0], tops=[sure, sure]))
    assert np.isfinite(list(row.values())).all()
    lone = of_answer(EVERYTHING, reply([-1.0], tops=[((0, -0.1),)]))
    assert np.isnan(lone["margin_mean"])  # a place that tells one token tells no margin


def test_broken_numbers_and_places_are_typed_errors() -> None:
    with pytest.raises(DataError, match="logprobs hold NaN"):
        EVERYTHING.answer_features([reply([-1.0]), reply([-1.0, math.nan])])
    with pytest.raises(DataError, match="top_logprobs hold NaN"):
        EVERYTHING.answer_features([reply([-1.0], tops=[((0, -1.0), (1, math.nan))])])
    with pytest.raises(ShapeError, match="1 places, the answer has 2 tokens"):
        EVERYTHING.answer_features([reply([-1.0, -1.0], tops=[((0, -1.0), (1, -2.0))])])


def test_features_of_many_answers_are_those_of_each() -> None:
    rng = np.random.default_rng(2)
    told = [
        reply((-np.exp(3 * rng.normal(size=length))).tolist(), str(length % 3))
        for length in (*range(12), 0, 1, 40, *rng.integers(0, 9, size=50))
    ]
    before: list[Reply | None] = [*told[3:], None, None, None]
    together = EVERYTHING.answer_features(told)
    beside = EVERYTHING.pair_features(told, before, same_ids=True)
    for row, (new, old) in enumerate(zip(told, before, strict=True)):
        np.testing.assert_array_equal(together[row], EVERYTHING.answer_features([new])[0])
        alone = EVERYTHING.pair_features([new], [old], same_ids=True)[0]
        np.testing.assert_array_equal(beside[row], alone)
    assert EVERYTHING.answer_features([]).shape == (0, len(EVERYTHING.answer_names))


# Groups.


def test_groups_choose_features_and_what_stages_must_tell() -> None:
    assert select(["all"]).groups == tuple(FEATURE_GROUPS)
    chosen = select(["margin", "length", "length"])
    assert chosen.groups == ("length", "margin")  # in one order, whatever was asked
    assert chosen.answer_names == ("log_length", "margin_minimum", "margin_mean")
    assert chosen.pair_names == ("length_ratio",)
    assert chosen.prompt_names == ()
    assert chosen.observe == Observe(top_logprobs=2)
    assert select(["logprobs", "agreement"]).observe == Observe()
    assert select(["verification", "margin"]).observe == Observe(top_logprobs=5)
    assert select("prompt_entropy").observe == Observe(prompt_entropy=True)
    for name in FEATURE_GROUPS:
        alone = select([name])
        assert alone.answer_features([reply([-1.0])]).shape == (1, len(alone.answer_names))


def test_a_group_of_no_such_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'margins'. Did you mean 'margin'"):
        select(["prompt", "margins"])
    with pytest.raises(ConfigError, match="at least one group"):
        select([])


# Prompts on their way through the stages.


def noted(num_stages: int = 3) -> Seen:
    """Two prompts that every stage answered."""
    seen = Seen.begin(EVERYTHING, ["one", "two"], num_stages)
    told: dict[int, list[Reply | None]] = {}
    for stage in range(1, num_stages + 1):
        replies = [reply([-0.1 * stage], text, entropy=0.5 * stage) for text in ("a", str(stage))]
        seen.note(stage, replies, told, [""] * num_stages)
        told[stage] = list(replies)
    return seen


def test_what_stages_say_is_noted_where_it_belongs() -> None:
    seen, agrees = noted(), EVERYTHING.pair_names.index("agreement")
    entropy = seen.prompt[:, EVERYTHING.prompt_names.index("prompt_entropy")]
    np.testing.assert_array_equal(entropy, [0.5, 0.5])  # the smallest stage's
    means = seen.answers[..., EVERYTHING.answer_names.index("logprob_mean")]
    np.testing.assert_allclose(means, [[-0.1, -0.2, -0.3]] * 2)
    for later in range(3):
        for earlier in range(3):
            values = seen.pairs[:, later, earlier, agrees]
            expected = [1.0, 0.0] if earlier < later else [np.nan, np.nan]
            np.testing.assert_array_equal(values, expected)


def test_rows_are_noted_alone_and_stages_that_did_not_run_leave_nothing() -> None:
    seen = Seen.begin(EVERYTHING, ["one", "two", "three"], 3)
    seen.note(1, [reply([-1.0])], {}, [""] * 3, np.array([2]))
    seen.note(
        3, [reply([-1.0]), reply([-2.0])], {1: [None, reply([-1.0])]}, [""] * 3, np.array([0, 2])
    )
    length = EVERYTHING.answer_names.index("log_length")
    np.testing.assert_array_equal(
        np.isfinite(seen.answers[..., length]),
        [[False, False, True], [False, False, False], [True, False, True]],
    )
    agrees = np.isfinite(seen.pairs[..., EVERYTHING.pair_names.index("agreement")])
    assert np.argwhere(agrees).tolist() == [[2, 2, 0]]


def test_ids_are_compared_only_where_vocabularies_are_known_to_be_equal() -> None:
    share = EVERYTHING.pair_names.index("accepted_share")
    before, now = reply([-1.0, -1.0], "ab"), reply([-1.0, -1.0], "xy")  # the same two ids
    for vocabularies, expected in ((["v", "v"], 1.0), (["v", "w"], 0.0), (["", ""], 0.0)):
        seen = Seen.begin(EVERYTHING, ["p"], 2)
        seen.note(2, [now], {1: [before]}, vocabularies)
        assert seen.pairs[0, 1, 0, share] == expected


def test_in_each_state_only_what_was_run_is_known() -> None:
    names = [f"prompt {name}" for name in EVERYTHING.prompt_names]
    names += [f"{n} {name}" for n in (1, 2, 3) for name in EVERYTHING.answer_names]
    pairs = ((2, 1), (3, 1), (3, 2))
    names += [f"{n} by {m} {name}" for n, m in pairs for name in EVERYTHING.pair_names]
    seen = noted()
    assert seen.flat().shape == (2, len(names))
    for state in range(8):
        run = [stage for stage in (1, 2, 3) if state >> (stage - 1) & 1]
        known = EVERYTHING.known(state, 3)
        for name, is_known in zip(names, known, strict=True):
            first, *rest = name.split()
            if first == "prompt":
                expected = name != "prompt prompt_entropy" or 1 in run
            elif rest[0] == "by":
                expected = (int(rest[1]), int(first)) in itertools.pairwise(run)
            else:
                expected = int(first) in run
            assert is_known == expected, (state, name)


def test_flat_rows_hold_features_in_the_order_of_what_is_known() -> None:
    """Where a stage's features are all 9, so are the columns that only states with it know."""
    for stage in (1, 2, 3):
        seen = noted()
        blank = Seen(
            EVERYTHING,
            np.zeros(seen.prompt.shape),
            np.zeros(seen.answers.shape),
            np.zeros(seen.pairs.shape),
        )
        blank.answers[:, stage - 1] = 9.0
        blank.pairs[:, stage - 1] = blank.pairs[:, :, stage - 1] = 9.0
        without = [EVERYTHING.known(state, 3) for state in range(8) if not state >> (stage - 1) & 1]
        never = ~np.any(without, axis=0)
        never[EVERYTHING.prompt_names.index("prompt_entropy")] = False
        np.testing.assert_array_equal(blank.flat()[0] == 9.0, never)


def test_some_of_the_prompts_can_be_taken_and_shapes_must_fit() -> None:
    seen = noted()
    part = seen.take(np.array([1]))
    assert (len(part), part.num_stages) == (1, 3)
    np.testing.assert_array_equal(part.flat(), seen.flat()[1:])
    with pytest.raises(ShapeError, match=r"pairs is \[2, 3, 3, 5\], expected \[2, 3, 3, 1\]"):
        Seen(select(["agreement"]), np.empty((2, 0)), np.empty((2, 3, 0)), seen.pairs)


def long_reply(length: int, seed: int) -> Reply:
    rng = np.random.default_rng(seed)
    tops = [
        tuple((int(token), -1.0 - token) for token in rng.permutation(5)) for _ in range(length)
    ]
    return reply([-0.5] * length, "x" * length, tops=tops)


def test_a_batch_costs_less_than_a_tenth_of_a_millisecond_a_reply() -> None:
    lengths = np.random.default_rng(0).integers(3, 65, size=64)
    now, before = ([long_reply(int(n), seed) for n in lengths] for seed in (0, 1))
    seen = Seen.begin(EVERYTHING, ["prompt"] * 64, 2)
    cost = fastest(lambda: seen.note(2, now, {1: before}, ["v", "v"]), enough=64 * 1e-4, calls=3)
    assert cost < 64 * 1e-4


def test_one_reply_costs_little_more() -> None:
    """Some 0.09 milliseconds where nothing else runs, for 8 tokens."""
    now, before = [long_reply(8, 0)], [long_reply(8, 1)]
    seen = Seen.begin(EVERYTHING, ["prompt"], 2)
    cost = fastest(lambda: seen.note(2, now, {1: before}, ["v", "v"]), enough=1.5e-4, calls=20)
    assert cost < 1.5e-4
