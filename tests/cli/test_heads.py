"""Heads by command: their kinds without a text, what they do with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.generate.text import TextGenerator
from stepwell.study.attribute import attribute_heads
from stepwell.study.head_scores import head_scores
from stepwell.study.patch import zero_heads
from stepwell.study.shapley import shapley_heads

ANSWERS = ("--right", "x", "--wrong", "y")
GIVEN = {"right": "x", "wrong": "y"}


@pytest.fixture
def generator(trained: Path) -> TextGenerator:
    return TextGenerator.load(trained, device="cpu")


def test_kinds_are_those_of_head_scores(run, trained, generator) -> None:
    shown = run("heads", trained, "--json").json
    tables = head_scores(generator)
    assert shown == {**{name: table.plain() for name, table in tables.items()}, "out": None}
    other = run("heads", trained, "--length", 4, "--texts", 3, "--seed", 1, "--json").json
    tables = head_scores(generator, length=4, texts=3, seed=1)
    assert other["induction"] == tables["induction"].plain()


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ((), zero_heads),
        (("--method", "zero"), zero_heads),
        (("--method", "attribution"), attribute_heads),
        (("--method", "shapley"), shapley_heads),
    ],
)
def test_with_a_text_it_is_what_the_method_gives(run, trained, generator, flags, method) -> None:
    shown = run("heads", trained, "abcd>", *flags, *ANSWERS, "--json")
    assert shown.code == 0, shown.err
    assert shown.json == {**method(generator, "abcd>", **GIVEN).plain(), "out": None}
    flags = (*flags, "--metric", "log_probability", "--right", "x", "--json")
    other = run("heads", trained, "abcd>", *flags).json
    assert other["rows"] == method(generator, "abcd>", right="x", metric="log_probability").rows


def test_orders_are_drawn_where_they_are_asked_for(run, trained) -> None:
    flags = ("--method", "shapley", "--orders", 6, "--seed", 3)
    ended = run("heads", trained, "abcd>", *flags)
    assert ended.code == 0
    assert "orders of joining: 6" in ended.err
    assert "Shapley" in ended.out


@pytest.mark.parametrize("words", [(), ("abcd>",)])
@pytest.mark.parametrize("name", ["heads.html", "heads.png"])
def test_both_are_drawn(run, trained, tmp_path, words, name) -> None:
    ended = run("heads", trained, *words, "--out", tmp_path / name)
    assert ended.code == 0, ended.err
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<!DOCTYPE html")
    assert name.endswith("png") or (b"Induction heads" in content) == (not words)
    assert ended.out.count("effect") == (1 if words else 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "zero"), "--method is about a text"),
        (("--right", "x"), "--right is about a text"),
        (("--metric", "probability"), "--metric is about a text"),
        (("abcd>", "--length", "4"), "--length is of random texts"),
        (("abcd>", "--texts", "4"), "--texts is of random texts"),
        (("abcd>", "--orders", "4"), "--orders is for --method shapley"),
        (("abcd>", "--method", "shapley", "--orders", "5"), "even number of 4 or more"),
        (("abcd>", "--method", "shap"), "shap"),
        (("abcd>", "--right", "x", "--wrong", "x"), "same token"),
        (("--length", "9"), "length is 9, expected 3 to 8"),
        (("--texts", "0"), "texts is 0"),
        (("--top", "0"), "--top is 0"),
        (("--out", "heads"), "ends in .html or .png"),
    ],
)
def test_what_is_wrong_is_said(run, trained, words, said) -> None:
    ended = run("heads", trained, *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
