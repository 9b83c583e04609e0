"""The lens reads transformers' hidden states by the norm and head of the same saved model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepwell.errors import PromptError
from stepwell.generate.text import TextGenerator
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.study.lens import logit_lens

TEXT = "abcdefg>"
TOLERANCE = 1e-5  # float32, log-probabilities of order 1


@torch.no_grad()
def test_every_row_is_norm_and_head_of_a_hidden_state(make, tmp_path) -> None:
    gen = make(num_layers=3, num_heads=4, num_kv_heads=2)
    save_model(gen.model, tmp_path)
    foreign = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([gen.tokenizer.encode(TEXT)])
    # the last of its hidden states has been normalised
    *states, last = foreign(ids, output_hidden_states=True).hidden_states
    read = [foreign.lm_head(foreign.model.norm(state)) for state in states]
    expected = torch.cat([*read, foreign.lm_head(last)]).log_softmax(-1)
    lens = logit_lens(gen, TEXT)
    torch.testing.assert_close(lens.log_probabilities, expected, rtol=0, atol=TOLERANCE)
    without_norm = foreign.lm_head(torch.cat(states)).log_softmax(-1)
    assert (lens.log_probabilities[:-1] - without_norm).abs().max() > 100 * TOLERANCE
    shifted = (lens.log_probabilities[1:] - expected[:-1]).abs().amax((1, 2))
    assert (shifted > 100 * TOLERANCE).all(), "one layer off"


@pytest.mark.parametrize("fields", [{}, {"norm": "layer", "position": "learned"}])
@torch.no_grad()
def test_the_last_row_is_the_models_own_answer(make, fields) -> None:
    gen = make(**fields)
    lens = logit_lens(gen, TEXT)
    own = gen.model(torch.tensor([gen.tokenizer.encode(TEXT)]))[0].log_softmax(-1)
    torch.testing.assert_close(lens.log_probabilities[-1], own, rtol=0, atol=TOLERANCE)
    assert (lens.log_probabilities[-2] - own).abs().max() > 100 * TOLERANCE


def test_the_likeliest_token_is_named_with_its_probability(gen) -> None:
    lens = logit_lens(gen, TEXT)
    for layer, row in enumerate(lens.likeliest.tolist()):
        for position, token in enumerate(row):
            chance = lens.probability(token)[layer, position]
            assert lens.figure.array[layer, position] == pytest.approx(float(chance))
            assert lens.figure.text[layer][position] == gen.tokenizer.token(token)
    assert list(lens.figure.x_ticks) == list(TEXT)
    assert list(lens.figure.y_ticks) == ["embedding", "after layer 0", "after layer 1"]
    assert lens.figure.array.max() < 1


def test_a_vocabulary_that_is_padded_has_names_for_all(gen, make) -> None:
    padded = make(vocab_size=40)
    with torch.no_grad():
        padded.model.head.weight[30] = padded.model.head.weight.sum(0) * 9
        padded.model.head.weight[31] = -padded.model.head.weight[30]
    lens = logit_lens(padded, TEXT)
    assert (lens.likeliest >= 30).any(), "what the tokenizer has not is likeliest"
    assert len(lens.names) == 40
    assert lens.figure.text


@pytest.mark.parametrize("token", [-1, 18, 10**9])
def test_an_unknown_token_is_refused(gen: TextGenerator, token: int) -> None:
    assert gen.model.config.vocab_size == 18
    with pytest.raises(PromptError, match=rf"tokens 0\.\.17, not {token}"):
        logit_lens(gen, TEXT).probability(token)


def test_it_can_be_written(gen, tmp_path) -> None:
    lens = logit_lens(gen, TEXT)
    assert b"after layer 1" in lens.write_html(tmp_path / "lens.html").read_bytes()
    assert lens.write_png(tmp_path / "lens.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(gen.model, Transformer)
