"""Scores of heads are means of attention patterns, which transformers' eager attention has too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stepwell.errors import UsageError
from stepwell.model.weights import save_model
from stepwell.study import head_scores as module
from stepwell.study.head_scores import head_scores

LENGTH = 6
BACK = {"previous": 1, "duplicate": LENGTH, "induction": LENGTH - 1}
TOLERANCE = 1e-6


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The texts that are recorded, as they come."""
    seen: list[list[int]] = []
    original = module.record

    def noting(model: Any, rows: Any, spec: Any) -> Any:
        seen.extend(rows)
        return original(model, rows, spec)

    monkeypatch.setattr(module, "record", noting)
    return seen


def with_pattern(monkeypatch: pytest.MonkeyPatch, back: int) -> None:
    """Every head looks at the token so many places before, where there is one."""

    def recorded(model: Any, rows: Any, _spec: Any) -> dict[tuple[str, int], Tensor]:
        length = len(rows[0])
        pattern_TS = torch.ones(length, length).tril(-back).triu(-back)
        shape = len(rows), model.config.num_heads, length, length
        return {("attention.pattern", layer): pattern_TS.expand(shape) for layer in range(2)}

    monkeypatch.setattr(module, "record", recorded)


def scored(patterns_NHTT: Tensor, back: int) -> np.ndarray:
    """Mean attention so many places back in the second half, cell by cell, [N, H]."""
    length = patterns_NHTT.shape[-1]
    cells = [patterns_NHTT[:, :, at, at - back] for at in range(length // 2, length)]
    return torch.stack(cells).double().mean(0).numpy()


@torch.no_grad()
def test_scores_are_those_of_transformers_attention(make, texts, tmp_path) -> None:
    gen = make(num_heads=4, num_kv_heads=2)
    tables = head_scores(gen, length=LENGTH, texts=5)
    save_model(gen.model, tmp_path)
    foreign = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    patterns = foreign(torch.tensor(texts), output_attentions=True).attentions
    for kind, table in tables.items():
        expected = np.stack([scored(each, BACK[kind]) for each in patterns], axis=1)
        np.testing.assert_allclose(table.effects, expected.mean(0), atol=TOLERANCE)
        error = expected.std(0, ddof=1) / np.sqrt(5)
        np.testing.assert_allclose(table.standard_errors, error, atol=TOLERANCE)
        beside = np.stack([scored(each, BACK[kind] + 1) for each in patterns], axis=1)
        assert np.abs(table.effects - beside.mean(0)).max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", BACK)
def test_a_head_that_does_just_that_scores_1(gen, monkeypatch, kind) -> None:
    with_pattern(monkeypatch, BACK[kind])
    for name, table in head_scores(gen, length=LENGTH).items():
        assert (table.effects == float(name == kind)).all(), "and in nothing else"


@pytest.mark.parametrize("back", [0, 2, LENGTH - 2, LENGTH + 1])
def test_one_position_off_scores_0(gen, monkeypatch, back) -> None:
    with_pattern(monkeypatch, back)
    assert not any(table.effects.any() for table in head_scores(gen, length=LENGTH).values())


def test_texts_come_twice_without_special_or_repeated_tokens(gen, texts) -> None:
    head_scores(gen, length=LENGTH, texts=20)
    assert len(texts) == 20
    for text in texts:
        assert text[:LENGTH] == text[LENGTH:]
        assert len(set(text)) == LENGTH
        assert not gen.tokenizer.special_ids & set(text)
    assert len({tuple(text) for text in texts}) == 20


def test_the_seed_chooses_the_texts(gen, texts) -> None:
    first, again, other = (head_scores(gen, seed=seed)["induction"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.effects, again.effects)
    assert (first.effects != other.effects).any()


def test_by_default_the_text_is_as_long_as_the_context_allows(gen, texts) -> None:
    head_scores(gen)
    assert {len(text) for text in texts} == {gen.model.config.context_length}


@pytest.mark.parametrize("length", [2, 13, 0, -1])
def test_a_length_that_does_not_fit_is_refused(gen, length) -> None:
    with pytest.raises(UsageError, match=f"length is {length}, expected 3 to 12"):
        head_scores(gen, length=length)


def test_no_text_is_refused(gen) -> None:
    with pytest.raises(UsageError, match="texts is 0"):
        head_scores(gen, texts=0)
