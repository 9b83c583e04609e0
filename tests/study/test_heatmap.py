"""Attention maps show the recorded weights under the right layer, head and token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stepwell.errors import HookError, ShapeError
from stepwell.generate.record import record
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.study.heatmap import heatmap, token_probabilities, visible

POINT = "attention.pattern"


def pattern(rows: int = 2, heads: int = 3, length: int = 4, seed: int = 0) -> np.ndarray:
    """Random causal attention [B, H, T, S], by the definition of softmax in float64."""
    scores = np.random.default_rng(seed).normal(size=(rows, heads, length, length))
    weights = np.exp(scores) * np.tril(np.ones((length, length)))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_maps_hold_the_pattern_of_each_layer_and_head():
    seen = {
        (POINT, 5): pattern(seed=5),
        ("logits", -1): np.zeros((2, 4, 7)),
        (POINT, 2): pattern(seed=2),
    }
    figure = heatmap(seen, list("abcd"), row=1).figure
    assert figure.row_labels == ["layer 2", "layer 5"]
    assert figure.column_labels == ["head 0", "head 1", "head 2"]
    assert figure.x_ticks == figure.y_ticks == list("abcd")
    for place, layer in enumerate((2, 5)):
        np.testing.assert_array_equal(np.nan_to_num(figure.array[place]), seen[POINT, layer][1])


def test_future_keys_are_blank_but_a_leak_into_the_future_is_shown():
    leaking = pattern()
    leaking[0, 1, 0, 3] = 0.25
    shown = heatmap({(POINT, 0): leaking}, list("abcd")).figure.array[0]
    blank = np.isnan(shown)
    future = np.triu(np.ones((4, 4), dtype=bool), 1)
    assert (blank[0] == future).all()
    assert not blank[1, 0, 3]
    assert shown[1, 0, 3] == np.float32(0.25)


def test_weight_of_zero_on_the_past_is_not_blank():
    zeroed = pattern()
    zeroed[0, 0, 3, 1] = 0.0
    assert heatmap({(POINT, 0): zeroed}, list("abcd")).figure.array[0, 0, 3, 1] == 0.0


def test_chosen_heads_and_positions_keep_their_numbers():
    chosen = pattern()[:, [2], :][:, :, [1, 3]]
    maps = heatmap({(POINT, 0): chosen}, list("abcd"), heads=[2], positions=[1, 3])
    assert maps.figure.column_labels == ["head 2"]
    assert maps.figure.y_ticks == ["b", "d"]
    assert np.isnan(maps.figure.array[0, 0]).tolist() == [[False, False, True, True], [False] * 4]


def test_tensors_that_need_gradients_or_are_bfloat16_are_shown_too():
    tensor = torch.tensor(pattern(), dtype=torch.bfloat16, requires_grad=True)
    shown = heatmap({(POINT, 0): tensor}, list("abcd")).figure.array
    np.testing.assert_allclose(np.nan_to_num(shown[0]), pattern()[0], atol=2**-8)


def test_recorded_rows_are_shown_without_their_padding():
    model = Transformer(
        ModelConfig(
            vocab_size=11, context_length=8, width=16, num_layers=2, num_heads=2, num_kv_heads=2
        )
    )
    model.initialize(seed=0)
    seen = record(model, [[1, 2, 3, 4, 5], [6, 7, 8]], points=[POINT])
    alone = record(model, [[6, 7, 8]], points=[POINT])
    short = heatmap(seen, ["x", "y", "z"], row=1).figure
    assert short.array.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(short.array, heatmap(alone, ["x", "y", "z"]).figure.array, atol=1e-6)
    np.testing.assert_allclose(np.nansum(short.array, axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        ("abc", {}),
        ("abcd", {"heads": [0]}),
        ("abcd", {"positions": [0, 1]}),
        ("abcd", {"positions": [0, 1, 2, 9]}),
        ("abcd", {"row": 2}),
        ("abcd", {"row": -1}),
    ],
)
def test_names_that_do_not_fit_what_was_recorded_are_refused(tokens, options):
    with pytest.raises(ShapeError):
        heatmap({(POINT, 0): pattern()}, list(tokens), **options)


def test_patterns_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        heatmap({(POINT, 0): pattern(), (POINT, 1): pattern(length=5)}, list("abcd"))


def test_recording_without_attention_says_how_to_get_it():
    with pytest.raises(HookError, match=r"points=\[\"attention.pattern\"\]"):
        heatmap({("logits", -1): np.zeros((1, 4, 7))}, list("abcd"))


def test_both_files_are_written(tmp_path):
    maps = heatmap({(POINT, 0): pattern()}, ["<b>", " the", "\n", "x"])
    page = maps.write_html(tmp_path / "a.html", command="stepwell inspect").read_text("utf-8")
    assert "&lt;b&gt; the" in page
    assert "<b>" not in page
    assert '"\\u00b7the"' in page
    assert "stepwell inspect" in page
    assert maps.write_png(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert maps.write_png(tmp_path / "dark.png", dark=True).stat().st_size > 0


def test_blank_and_unprintable_tokens_can_be_seen():
    assert visible(" the\n\t") == "·the⏎⇥"
    assert visible("\x1b\u202e") == "\\u001b\\u202e"
    assert visible("日本 é") == "日本·é"


def test_likeliest_tokens_come_first_with_their_probabilities():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 3.0, 0.0, 9.0]])
    figure = token_probabilities(logits, ["a", " b"], lambda token: f"<{token}>", top=2)
    expected = torch.softmax(logits.double(), dim=-1)
    np.testing.assert_allclose(figure.array[:, 0], expected[0, [1, 2]], rtol=1e-12)
    np.testing.assert_allclose(figure.array[:, 1], expected[1, [3, 0]], rtol=1e-12)
    assert figure.text == [["<1>", "<3>"], ["<2>", "<0>"]]
    assert figure.x_ticks == ["a", "·b"]


def test_probabilities_need_a_row_for_each_token():
    with pytest.raises(ShapeError, match=r"expected logits \[3, V\]"):
        token_probabilities(np.zeros((2, 5)), ["a", "b", "c"], str)


def test_extreme_logits_do_not_overflow():
    figure = token_probabilities(np.array([[1e4, -1e4, 0.0]]), ["a"], str, top=3)
    np.testing.assert_array_equal(figure.array[:, 0], [1.0, 0.0, 0.0])
