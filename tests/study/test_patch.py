"""Patching and silencing do to the score what changing the output projection's input does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support import studies

from stepwell.errors import HookError, PromptError, UsageError
from stepwell.generate.text import TextGenerator
from stepwell.study import question
from stepwell.study.patch import patch_heads, patch_positions, zero_heads

CLEAN, CORRUPT = "abcd>", "abgd>"
ANSWERS = {"right": "e", "wrong": "f"}
CLEANS, CORRUPTS = ["abcd>", "dcba>", "hgfe>", "aabb>"], ["abgd>", "dcbb>", "hafe>", "ababab"[:5]]
TOLERANCE = 2e-5  # float32, shares of differences of order 1


def patched(gen: TextGenerator, into: str, source: str, layer: int, head: int) -> float:
    """The score where one head has the output that it has in another text."""
    other = studies.heads_of(gen, source)[layer]
    return studies.difference(gen, into, "e", "f", {layer: studies.put_head(head, other)})


def shares(gen: TextGenerator, clean: str, corrupt: str) -> np.ndarray:
    """What `patch_heads` has to give for a pair."""
    start, end = (studies.difference(gen, text, "e", "f") for text in (corrupt, clean))
    scores = [
        [patched(gen, corrupt, clean, layer, head) for head in range(gen.model.config.num_heads)]
        for layer in studies.layers(gen.model)
    ]
    return (np.array(scores) - start) / (end - start)


def without_head(gen: TextGenerator, layer: int, head: int) -> TextGenerator:
    """The same model with a head's columns of the output projection zero."""
    changed, width = copy.deepcopy(gen.model), gen.model.config.head_dim
    with torch.no_grad():
        projection = changed.blocks[layer].attention.o_proj
        projection.weight[:, head * width : (head + 1) * width] = 0
    return TextGenerator(changed, gen.tokenizer)


def test_silencing_a_head_is_zeroing_its_columns_of_the_output_projection(make) -> None:
    gen = make(num_heads=4, num_kv_heads=2)
    table = zero_heads(gen, CLEAN, **ANSWERS)
    plain = studies.difference(gen, CLEAN, "e", "f")
    lost = np.array(
        [
            [
                plain - studies.difference(without_head(gen, layer, head), CLEAN, "e", "f")
                for head in range(4)
            ]
            for layer in range(2)
        ]
    )
    np.testing.assert_allclose(table.effects, lost, atol=TOLERANCE)
    assert np.abs(table.effects - lost[:, ::-1]).min() > 10 * TOLERANCE, "another head's columns"


def test_a_patched_head_is_its_slice_of_the_projections_input_replaced(make) -> None:
    gen = make(num_heads=4, num_kv_heads=2)
    table = patch_heads(gen, CLEAN, CORRUPT, **ANSWERS)
    np.testing.assert_allclose(table.effects, shares(gen, CLEAN, CORRUPT), atol=TOLERANCE)
    assert np.isnan(table.standard_errors).all(), "one pair tells no spread"
    last_only = [_patched_at_the_end(gen, layer, head) for layer in range(2) for head in range(4)]
    assert np.abs(table.effects.ravel() - last_only).max() > 10 * TOLERANCE, "at all positions"


def _patched_at_the_end(gen: TextGenerator, layer: int, head: int) -> float:
    mixed = studies.heads_of(gen, CORRUPT)[layer].clone()
    mixed[:, -1] = studies.heads_of(gen, CLEAN)[layer][:, -1]
    score = studies.difference(gen, CORRUPT, "e", "f", {layer: studies.put_head(head, mixed)})
    start, end = (studies.difference(gen, text, "e", "f") for text in (CORRUPT, CLEAN))
    return (score - start) / (end - start)


@pytest.mark.parametrize("into", ["corrupt", "clean"])
def test_only_where_the_texts_differ_does_what_enters_carry_the_difference(gen, into) -> None:
    table = patch_positions(gen, CLEAN, CORRUPT, into=into, **ANSWERS)
    np.testing.assert_allclose(table.effects[0], [0, 0, 1, 0, 0], atol=TOLERANCE)
    assert table.effects[1, :2] == pytest.approx([0, 0], abs=TOLERANCE), "no token sees a later one"
    assert table.columns[:2] == ("0 a", "1 b")
    assert table.columns[2] == ("2 c" if into == "corrupt" else "2 g")


def test_at_the_end_only_the_last_position_is_read(gen) -> None:
    table = patch_positions(gen, CLEAN, CORRUPT, point="residual.after", **ANSWERS)
    np.testing.assert_allclose(table.effects[1], [0, 0, 0, 0, 1], atol=TOLERANCE)
    assert np.abs(table.effects[0, 2] - [0, 1]).min() > TOLERANCE, "in between it is spread"


def test_a_pattern_is_patched_query_by_query(gen) -> None:
    pattern = patch_positions(gen, CLEAN, CORRUPT, point="attention.pattern", **ANSWERS)
    assert pattern.effects[:, 0] == pytest.approx([0, 0], abs=TOLERANCE), "it sees only itself"
    assert np.abs(pattern.effects[:, -1]).max() > TOLERANCE


def test_into_the_clean_run_is_the_mirror(gen) -> None:
    mirrored = patch_heads(gen, CLEAN, CORRUPT, into="clean", **ANSWERS)
    np.testing.assert_allclose(mirrored.effects, shares(gen, CORRUPT, CLEAN), atol=TOLERANCE)
    other = patch_heads(gen, CLEAN, CORRUPT, **ANSWERS)
    assert np.abs(mirrored.effects - other.effects).max() > 10 * TOLERANCE


def test_several_pairs_give_the_ratio_of_means_and_its_standard_error(gen) -> None:
    table = patch_heads(gen, CLEANS, CORRUPTS, **ANSWERS)
    start = np.array([studies.difference(gen, text, "e", "f") for text in CORRUPTS])
    end = np.array([studies.difference(gen, text, "e", "f") for text in CLEANS])
    for layer in range(2):
        for head in range(2):
            pairs = zip(CORRUPTS, CLEANS, strict=True)
            moved = [patched(gen, into, source, layer, head) for into, source in pairs] - start
            way, count = end - start, len(start)
            ratio = moved.sum() / way.sum()
            # the delta method on the covariance of the two means
            spread = np.cov(moved, way)
            slope = np.array([1, -ratio]) / way.mean()
            error = np.sqrt(slope @ spread @ slope / count)
            assert table.effects[layer, head] == pytest.approx(ratio, abs=1e-4)
            assert table.standard_errors[layer, head] == pytest.approx(error, rel=1e-3)
            assert abs((moved / way).mean() - ratio) > 1e-3, "not the mean of ratios"


def test_default_answers_are_the_models_own(gen) -> None:
    corrupt = next(text for text in _variants() if _says(gen, text) != _says(gen, CLEAN))
    given = {"right": _says(gen, CLEAN), "wrong": _says(gen, corrupt)}
    plain, named = patch_heads(gen, CLEAN, corrupt), patch_heads(gen, CLEAN, corrupt, **given)
    np.testing.assert_array_equal(plain.effects, named.effects)


def _variants() -> list[str]:
    return [f"ab{one}{other}>" for one in "cdefgh" for other in "abcdefgh"]


def _says(gen: TextGenerator, text: str) -> str:
    return gen.tokenizer.token(int(studies.last_logits(gen, text).argmax()))


def test_batches_move_nothing(gen, monkeypatch) -> None:
    together = patch_heads(gen, CLEANS, CORRUPTS, **ANSWERS)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(question, "BATCH_TOKENS", 11)
    apart = patch_heads(gen, CLEANS, CORRUPTS, **ANSWERS, progress=lambda *each: told.append(each))
    np.testing.assert_allclose(apart.effects, together.effects, atol=TOLERANCE)
    assert told == [(rows, 16) for rows in range(2, 17, 2)]


def test_texts_of_several_lengths_are_read_at_their_own_ends(gen) -> None:
    cleans, corrupts = ["abcd>", "abcdefgh>"], ["abgd>", "abcdafgh>"]
    both = patch_heads(gen, cleans, corrupts, metric="log_probability", **ANSWERS)
    moved, way = [], []
    for clean, corrupt in zip(cleans, corrupts, strict=True):
        one = patch_heads(gen, clean, corrupt, metric="log_probability", **ANSWERS)
        ends = [studies.last_logits(gen, text).double() for text in (clean, corrupt)]
        [right] = gen.tokenizer.encode("e")
        way.append(float(torch.stack(ends).log_softmax(-1)[:, right].diff().neg()))
        moved.append(one.effects * way[-1])
    np.testing.assert_allclose(both.effects, sum(moved) / sum(way), atol=1e-4)


@pytest.mark.parametrize("metric", ["log_probability", "probability"])
def test_the_metric_is_what_it_says(gen, metric) -> None:
    table = zero_heads(gen, CLEAN, metric=metric, **ANSWERS)
    [right] = gen.tokenizer.encode("e")

    def score(changes: dict) -> float:
        chance = studies.last_logits(gen, CLEAN, changes).double().softmax(-1)[right]
        return float(chance.log() if metric == "log_probability" else chance)

    lost = [score({}) - score({0: studies.zeroed(head)}) for head in range(2)]
    assert table.effects[0] == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"corrupt": [CORRUPT, CORRUPT]}, PromptError, "1 clean texts do not pair with 2"),
        ({"corrupt": "abgdd>"}, PromptError, "has 5 tokens, its corrupt one 6"),
        ({"wrong": "e"}, PromptError, "'e' alike"),
        ({"corrupt": CLEAN}, PromptError, "same score"),
        ({"right": "ef"}, PromptError, "'ef' is 2 tokens"),
        ({"right": ""}, PromptError, "'' is 0 tokens"),
        ({"right": ["e", "e"]}, PromptError, "2 answers to 1 texts"),
        ({"clean": [], "corrupt": []}, PromptError, "no text"),
        ({"clean": "Z"}, PromptError, "Z"),
        ({"clean": "a" * 25, "corrupt": "b" * 25}, PromptError, "context of 24"),
        ({"metric": "logit_diference"}, UsageError, "Did you mean 'logit_difference'"),
        ({"into": "korrupt"}, UsageError, "Did you mean 'corrupt'"),
    ],
)
@pytest.mark.parametrize("patch", [patch_heads, patch_positions])
def test_what_cannot_be_patched_is_refused(gen, patch, changes, kind, said) -> None:
    with pytest.raises(kind, match=said):
        patch(gen, **{"clean": CLEAN, "corrupt": CORRUPT, **ANSWERS, **changes})


def test_points_that_are_none_are_refused(gen) -> None:
    with pytest.raises(HookError, match=r"Did you mean 'residual\.before'"):
        patch_positions(gen, CLEAN, CORRUPT, point="residual.befor", **ANSWERS)
    with pytest.raises(UsageError, match="no layer"):
        patch_positions(gen, CLEAN, CORRUPT, point="logits", **ANSWERS)
    with pytest.raises(PromptError, match="equally many tokens"):
        patch_positions(gen, ["ab>", "abc>"], ["aa>", "aac>"], **ANSWERS)


def test_two_equal_answers_to_one_text_are_refused(gen) -> None:
    with pytest.raises(PromptError, match="same token"):
        zero_heads(gen, CLEAN, right="e", wrong="e")
    assert zero_heads(gen, CLEAN, right="e", wrong="e", metric="probability").effects.any()
