"""Certainty: entropy and likeliest token of answers, as transformers and float64 have them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwell.errors import PromptError
from stepwell.evals import certainty as module
from stepwell.evals.certainty import certainty
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import Replace
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.text.tokenizer import Tokenizer

SHAPE = ModelConfig(vocab_size=29, context_length=64, width=32, num_layers=2, num_heads=4)
PROMPT = [3, 1, 4, 1, 5]
ANSWERS = [[9, 2, 6], [5], [3, 5, 8, 9, 7, 9], [9, 2, 6], [2, 7]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(SHAPE)
    model.initialize(0)
    with torch.no_grad():
        model.embed.weight.mul_(3)  # so that some tokens are likely
    return model.eval()


def of_logits(logits: torch.Tensor, answer: list[int]) -> np.ndarray:
    """Entropy, probability of the likeliest and log-probability of the answer's tokens, [3, T]."""
    probabilities = logits.double().softmax(-1).numpy()
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in probabilities]
    chosen = [math.log(row[token]) for row, token in zip(probabilities, answer, strict=True)]
    return np.array([entropy, probabilities.max(-1), chosen])


def columns(found: module.Certainty) -> np.ndarray:
    return np.array([found.entropy, found.top, found.logprob])


def test_it_is_what_transformers_says_of_each_token(model, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    found = certainty(model, PROMPT, ANSWERS)
    for answer, sure in zip(ANSWERS, found, strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([PROMPT + answer])).logits[0]
        expected = of_logits(logits[len(PROMPT) - 1 : -1], answer)
        np.testing.assert_allclose(columns(sure), expected, rtol=0, atol=2e-5)  # float32
        shifted = of_logits(logits[len(PROMPT) :], answer)
        assert np.abs(columns(sure) - shifted).max() > 0.01, "a position off would be noticed"


def test_an_answer_is_the_same_alone_and_in_parts(model, monkeypatch) -> None:
    together = certainty(model, PROMPT, ANSWERS)
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 2)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 15)
    for answer, known, part in zip(
        ANSWERS, together, certainty(model, PROMPT, ANSWERS), strict=True
    ):
        [alone] = certainty(model, PROMPT, [answer])
        for other in (part, alone):
            np.testing.assert_allclose(columns(other), columns(known), atol=1e-5)  # float32


def test_equal_answers_are_read_once(model, monkeypatch) -> None:
    read: list[int] = []
    hidden = Transformer.hidden

    def noting(self, ids_BT, **how):
        read.append(len(ids_BT))
        return hidden(self, ids_BT, **how)

    monkeypatch.setattr(Transformer, "hidden", noting)
    certainty(model, PROMPT, [ANSWERS[0]] * 7 + [ANSWERS[1]])
    assert read == [2]


def test_the_log_probabilities_are_those_that_the_engine_reports(model) -> None:
    tokenizer = Tokenizer.character("".join(chr(ord("A") + n) for n in range(29)))
    generator = TextGenerator(model, tokenizer, eos_ids=[])
    prompt = tokenizer.decode(PROMPT)
    how = {"max_new_tokens": 9, "temperature": 1.7, "top_k": 5, "logprobs": 0}
    [answers] = generator.generate_batch([prompt], n=4, **how)
    found = certainty(model, tokenizer.encode(prompt), [answer.token_ids for answer in answers])
    for answer, sure in zip(answers, found, strict=True):
        np.testing.assert_allclose(sure.logprob, answer.logprobs, atol=1e-5)  # float32


def test_a_distribution_that_is_even_has_the_entropy_of_its_size(model) -> None:
    even = Replace(point="logits", value=0.0)
    [sure] = certainty(model, PROMPT, ANSWERS[:1], interventions=[even])
    np.testing.assert_allclose(sure.entropy, math.log(29), atol=1e-6)
    np.testing.assert_allclose(sure.top, 1 / 29, atol=1e-6)
    assert sure.num_confident(1 / 30) == 3
    assert sure.num_confident(1 / 28) == 0


def test_a_certain_one_has_none(model) -> None:
    certain = Replace(point="logits", value=(1e4,) + (0.0,) * 28)
    [sure] = certainty(model, PROMPT, [[0, 0]], interventions=[certain])
    assert sure.entropy.tolist() == [0, 0], "and not NaN, where a probability is 0"
    assert sure.top.tolist() == [1, 1]


def test_an_intervention_on_generated_tokens_leaves_the_first(model) -> None:
    later = Replace(point="logits", value=0.0, positions="generated")
    [sure] = certainty(model, PROMPT, ANSWERS[2:3], interventions=[later])
    [plain] = certainty(model, PROMPT, ANSWERS[2:3])
    assert sure.entropy[0] == pytest.approx(plain.entropy[0], abs=1e-6)
    np.testing.assert_allclose(sure.entropy[1:], math.log(29), atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "answers"), [([], [[1]]), ([1], [[1], []]), ([1] * 60, [[1] * 6])]
)
def test_what_cannot_be_read_is_refused(model, prompt, answers) -> None:
    with pytest.raises(PromptError):
        certainty(model, prompt, answers)
