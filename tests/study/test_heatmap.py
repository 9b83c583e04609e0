"""Attention maps show the recorded weights under the right layer, head and token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stepwell.errors import HookError, LogitsError, ShapeError
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.report import Page, write_png
from stepwell.study.heatmap import heatmap, token_heatmap, token_probabilities, visible

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
    seen = record(model, [[1, 2, 3, 4, 5], [6, 7, 8]], Record(points=(POINT,)))
    alone = record(model, [[6, 7, 8]], Record(points=(POINT,)))
    short = heatmap(seen, ["x", "y", "z"], row=1).figure
    assert short.array.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(short.array, heatmap(alone, ["x", "y", "z"]).figure.array, atol=1e-6)
    np.testing.assert_allclose(np.nansum(short.array, axis=-1), 1.0, atol=1e-5)


def test_recorded_positions_are_known_without_being_named():
    model = Transformer(
        ModelConfig(
            vocab_size=11, context_length=8, width=16, num_layers=1, num_heads=2, num_kv_heads=2
        )
    )
    model.initialize(seed=0)
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8]]
    last = heatmap(
        record(model, prompts, Record(points=(POINT,), positions="last")), list("xyz"), row=1
    )
    whole = heatmap(record(model, prompts, Record(points=(POINT,))), list("xyz"), row=1)
    assert last.figure.y_ticks == ["z"]
    np.testing.assert_allclose(last.figure.array, whole.figure.array[:, :, 2:], atol=1e-6)


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


def words(count: int, size: int = 50, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Random logits [T, V] and token ids [T]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, size, generator=generator)
    return logits, torch.randint(size, (count,), generator=generator).tolist()


def test_each_token_has_the_probability_that_the_one_before_it_gave():
    logits, tokens = words(9)
    strip = token_heatmap(logits, tokens, lambda token: f" {token}\n")
    loss = torch.nn.functional.cross_entropy(
        logits[:-1].double(), torch.tensor(tokens[1:]), reduction="none"
    )
    assert np.isnan(strip.array[0])
    np.testing.assert_allclose(strip.array[1:], (-loss).exp(), rtol=1e-12)
    shifted = torch.softmax(logits.double(), dim=-1)[range(9), tokens]  # each from its own place
    assert not np.allclose(strip.array[1:], shifted[1:])
    assert strip.tokens == [f"·{token}⏎" for token in tokens]


def test_probabilities_of_a_text_are_those_of_the_loss_of_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(40, (1, 12))
    with torch.no_grad():
        answer = model(ids, labels=ids)
    strip = token_heatmap(answer.logits[0], ids[0].tolist(), str)
    assert -np.log(strip.array[1:]).mean() == pytest.approx(float(answer.loss), rel=1e-5)


def test_choices_are_the_likeliest_in_order_and_the_token_itself_with_its_rank():
    logits, tokens = words(30)
    strip = token_heatmap(logits, tokens, str, top=4)
    assert strip.choices[0] == ()
    for place, choices in enumerate(strip.choices[1:], 1):
        probabilities = torch.softmax(logits[place - 1].double(), dim=-1)
        order = probabilities.argsort(descending=True).tolist()
        rank = order.index(tokens[place]) + 1
        expected = order[:4] if rank <= 4 else [*order[:4], tokens[place]]
        assert [choice.text for choice in choices] == [str(token) for token in expected]
        assert [choice.rank for choice in choices[:4]] == [1, 2, 3, 4]
        assert [choice.rank for choice in choices if choice.actual] == [rank]
        given = [choice.probability for choice in choices]
        np.testing.assert_allclose(given, probabilities[expected], rtol=1e-12)


def test_of_equally_likely_tokens_the_smaller_id_comes_first():
    strip = token_heatmap(torch.zeros(3, 6), [0, 4, 1], str, top=2)
    assert [(one.text, one.rank, one.actual) for one in strip.choices[1]] == [
        ("0", 1, False),
        ("1", 2, False),
        ("4", 5, True),
    ]
    assert [one.actual for one in strip.choices[2]] == [False, True]


def test_more_choices_than_there_are_tokens_are_all_of_them():
    strip = token_heatmap(torch.tensor([[0.0, -torch.inf, 2.0]] * 2), [0, 1], str, top=9)
    assert [(one.text, one.rank) for one in strip.choices[1]] == [("2", 1), ("0", 2), ("1", 3)]
    assert strip.array[1] == 0.0


@pytest.mark.parametrize("shape", [(2, 5), (5,), (1, 3, 5)])
def test_a_text_needs_a_row_of_logits_for_each_token(shape):
    with pytest.raises(ShapeError, match=r"expected logits \[3, V\]"):
        token_heatmap(np.zeros(shape), [1, 2, 3], str)


def test_logits_that_are_not_numbers_are_refused():
    logits = torch.zeros(3, 5)
    logits[1, 2] = torch.nan
    with pytest.raises(LogitsError):
        token_heatmap(logits, [1, 2, 3], str)


@pytest.mark.parametrize("token", [-1, 5])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ShapeError, match=f"no token {token} of 5"):
        token_heatmap(torch.zeros(2, 5), [0, token], str)


def test_recorded_logits_of_a_text_are_drawn(tmp_path):
    model = Transformer(
        ModelConfig(
            vocab_size=11, context_length=8, width=16, num_layers=1, num_heads=2, num_kv_heads=2
        )
    )
    model.initialize(seed=0)
    seen = record(model, [[1, 2, 3, 4, 5]], Record(points=("logits",)))
    [logits] = seen.values()
    strip = token_heatmap(logits[0], [1, 2, 3, 4, 5], lambda token: "<\n "[token % 3])
    page = Page("p").add(strip).write(tmp_path / "page.html").read_text("utf-8")
    assert "&lt;" in page
    assert write_png(strip, tmp_path / "strip.png").read_bytes().startswith(b"\x89PNG")
