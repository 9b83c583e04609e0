"""Attributions are derivatives: central differences of the score in float64 agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import studies
from torch import Tensor

from stepwell.errors import PromptError
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Scale
from stepwell.model.quantize import quantize_weights
from stepwell.study.attribute import attribute_heads, attribute_patches
from stepwell.study.patch import patch_heads
from stepwell.study.question import ask

CLEAN, CORRUPT = "abcd>", "abgd>"
ANSWERS = {"right": "e", "wrong": "f"}
STEP = 1e-4
RELATIVE = 1e-6  # float64, steps of 1e-4: errors of order STEP**2


def slope(gen: TextGenerator, text: str, layer: int, head: int, along: Tensor) -> float:
    """The score's derivative along a direction [1, T, D] of one head's output."""

    def score(step: float) -> float:
        change = studies.with_head(head, lambda output: output + step * along)
        return studies.difference(gen, text, "e", "f", {layer: change})

    return (score(STEP) - score(-STEP)) / (2 * STEP)


def slopes(gen: TextGenerator, text: str, along: list[Tensor]) -> np.ndarray:
    """All heads' derivatives, along directions [1, T, H, D] of each layer."""
    heads = range(gen.model.config.num_heads)
    return np.array(
        [
            [slope(gen, text, layer, head, direction[:, :, head]) for head in heads]
            for layer, direction in enumerate(along)
        ]
    )


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_a_heads_attribution_is_the_slope_of_the_score_along_its_output(precise) -> None:
    table = attribute_heads(precise, CLEAN, **ANSWERS)
    expected = slopes(precise, CLEAN, studies.heads_of(precise, CLEAN))
    assert_near(table.effects, expected)
    other = slopes(precise, CLEAN, studies.heads_of(precise, CORRUPT))
    with pytest.raises(AssertionError):
        assert_near(table.effects, other)


def test_a_heads_attribution_is_the_slope_by_its_factor(precise) -> None:
    question = ask(precise, CLEAN, "e", "f")
    cells = [
        [[Scale(point="attention.heads", layer=layer, heads=(head,), factor=factor)]]
        for layer in range(2)
        for head in range(2)
        for factor in (1 - STEP, 1 + STEP)
    ]
    down, up = question.scores(precise.model, cells).view(2, 2, 2).unbind(-1)
    table = attribute_heads(precise, CLEAN, **ANSWERS)
    assert_near(table.effects, ((up - down) / (2 * STEP)).numpy())


def test_a_patchs_attribution_is_the_slope_towards_the_clean_run(precise) -> None:
    table = attribute_patches(precise, CLEAN, CORRUPT, **ANSWERS)
    clean, corrupt = (studies.heads_of(precise, text) for text in (CLEAN, CORRUPT))
    towards = [one - other for one, other in zip(clean, corrupt, strict=True)]
    assert_near(table.effects, slopes(precise, CORRUPT, towards))
    with pytest.raises(AssertionError):
        assert_near(table.effects, slopes(precise, CLEAN, towards))


def test_a_small_patch_moves_what_its_attribution_says(make) -> None:
    gen = make(dtype=torch.float64, norm="layer")
    with torch.no_grad():  # c and g are nearly the same token
        one, other = (gen.tokenizer.encode(sign)[0] for sign in "cg")
        embed = gen.model.embed.weight
        embed[other] = embed[one] + 1e-3 * embed[other]
    moved = patch_heads(gen, CLEAN, CORRUPT, **ANSWERS).effects
    ends = (studies.difference(gen, text, "e", "f") for text in (CLEAN, CORRUPT))
    way = np.subtract(*ends)
    told = attribute_patches(gen, CLEAN, CORRUPT, **ANSWERS).effects
    np.testing.assert_allclose(told, moved * way, rtol=0.02, atol=1e-6)


def test_several_texts_have_the_mean_and_its_standard_error(gen) -> None:
    texts = [CLEAN, "dcba>fg", "hg>"]
    table = attribute_heads(gen, texts, **ANSWERS)
    alone = np.array([attribute_heads(gen, text, **ANSWERS).effects for text in texts])
    np.testing.assert_allclose(table.effects, alone.mean(0), atol=1e-12)
    error = np.sqrt(((alone - alone.mean(0)) ** 2).sum(0) / 2 / 3)
    np.testing.assert_allclose(table.standard_errors, error, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, "int8"])
def test_every_number_format_has_gradients(make, kind) -> None:
    exact = attribute_heads(make(dtype=torch.float64), CLEAN, **ANSWERS).effects
    gen = make()
    if kind == "int8":
        gen = TextGenerator(quantize_weights(gen.model), gen.tokenizer)
    else:
        gen.model.to(kind)
    found = attribute_heads(gen, CLEAN, **ANSWERS).effects
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, "int8": 0.1}[kind]
    np.testing.assert_allclose(found, exact, atol=tolerance * np.abs(exact).max())


def test_no_gradient_is_left_at_the_weights(gen) -> None:
    attribute_heads(gen, CLEAN, **ANSWERS)
    assert all(each.grad is None for each in gen.model.parameters())


def test_texts_that_do_not_pair_are_refused(gen) -> None:
    with pytest.raises(PromptError, match="5 tokens, its corrupt one 6"):
        attribute_patches(gen, CLEAN, "abgdd>", **ANSWERS)
    with pytest.raises(PromptError, match="do not pair"):
        attribute_patches(gen, CLEAN, [CORRUPT, CORRUPT], **ANSWERS)
    with pytest.raises(PromptError, match="alike"):
        attribute_patches(gen, CLEAN, CORRUPT, right="e", wrong="e")
