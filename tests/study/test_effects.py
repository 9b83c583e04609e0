"""Tables of effects: shares of a way, their order, and what is shown of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stepwell.errors import LogitsError, PromptError
from stepwell.study.effects import EffectTable
from stepwell.study.question import Question

START, END = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0])
PATCHED = torch.tensor([[[1.0, 2.0]], [[2.0, 8.0]]])


def shares(patched=PATCHED, start=START, end=END) -> EffectTable:
    return EffectTable.shares(patched, start, end, ["a", "b"], title="Shares", metric="score")


def test_nothing_is_0_and_everything_is_1() -> None:
    assert shares().effects.tolist() == [[0.0, 7 / 8]]
    assert shares(END[:, None, None].expand(2, 1, 2)).effects.tolist() == [[1.0, 1.0]]
    assert shares(END[:, None, None].expand(2, 1, 2)).standard_errors.tolist() == [[0.0, 0.0]]


def test_a_single_pair_has_no_standard_error() -> None:
    one = shares(PATCHED[:1], START[:1], END[:1])
    assert np.isnan(one.standard_errors).all()
    assert one.rows[0]["standard_error"] is None
    assert one.figure.error is None
    assert shares().figure.error is not None
    assert json.dumps(one.rows, allow_nan=False)


def test_rows_come_with_the_greatest_effect_first_whatever_its_sign() -> None:
    values = torch.tensor([[[0.1, -0.9], [0.5, 0.0]]])
    table = EffectTable.differences(values, ["a", "b"], title="T", value_label="v")
    assert [(row["layer"], row["column"]) for row in table.rows] == [
        *((0, "b"), (1, "a")),
        *((0, "a"), (1, "b")),
    ]
    assert [row["effect"] for row in table.rows] == pytest.approx([-0.9, 0.5, 0.1, 0.0])


def test_scores_that_float32_cannot_tell_apart_are_refused() -> None:
    near = START * (1 + 1e-7)
    with pytest.raises(PromptError, match="nothing to explain"):
        shares(end=near)
    assert np.isfinite(shares(end=START * (1 + 1e-4)).effects).all()
    small = shares(PATCHED * 1e-9, START * 1e-9, END * 1e-9)
    assert small.effects == pytest.approx(shares().effects), "small scores may differ much"


def test_it_can_be_written(tmp_path) -> None:
    page = shares().write_html(tmp_path / "t.html", command="stepwell patch").read_text()
    assert "Shares" in page
    assert "stepwell patch" in page
    assert "pairs of texts" in page
    assert shares().write_png(tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_scores_that_are_not_finite_are_refused(make) -> None:
    gen = make()
    with torch.no_grad():
        gen.model.head.weight[3] = torch.nan
    with pytest.raises(LogitsError, match="no score"):
        Question(((4, 5),), (3,), (2,)).scores(gen.model)
