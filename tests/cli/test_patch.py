"""Patching by command: what is shown is what the methods give, and wrong words are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from stepwell.cli.effects import StudyProgress
from stepwell.cli.patch import read_pairs
from stepwell.errors import DataError
from stepwell.generate.text import TextGenerator
from stepwell.study.attribute import attribute_patches
from stepwell.study.metric import METRIC_NAMES, Metric
from stepwell.study.patch import patch_heads, patch_positions
from stepwell.study.question import METRICS

TEXTS = ("--clean", "abcd>", "--corrupt", "abce>", "--right", "x", "--wrong", "y")
GIVEN = {"clean": "abcd>", "corrupt": "abce>", "right": "x", "wrong": "y"}
PAIRS = [GIVEN, {**GIVEN, "clean": "ffcd>", "corrupt": "ffcg>"}]


@pytest.fixture
def generator(trained: Path) -> TextGenerator:
    return TextGenerator.load(trained, device="cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n\n".join(map(json.dumps, PAIRS)) + "\n")
    return path


def columns(pairs: list[dict[str, str]]) -> dict[str, list[str]]:
    return {key: [pair[key] for pair in pairs] for key in GIVEN}


def test_heads_are_those_of_patch_heads(run, trained, generator) -> None:
    for into in ("corrupt", "clean"):
        shown = run("patch", trained, *TEXTS, "--into", into, "--json")
        assert shown.code == 0, shown.err
        assert shown.json == {**patch_heads(generator, **GIVEN, into=into).plain(), "out": None}


def test_points_are_those_of_patch_positions(run, trained, generator) -> None:
    flags = ("--point", "mlp.output", "--metric", "probability", "--json")
    shown = run("patch", trained, *TEXTS, *flags).json
    table = patch_positions(generator, **GIVEN, point="mlp.output", metric="probability")
    assert shown["rows"] == table.rows
    assert len(shown["rows"]) == 5
    assert shown["rows"] != patch_positions(generator, **GIVEN, point="mlp.output").rows


def test_attribution_is_that_of_attribute_patches(run, trained, generator, pairs) -> None:
    shown = run("patch", trained, "--pairs", pairs, "--method", "attribution", "--json")
    assert shown.json["rows"] == attribute_patches(generator, **columns(PAIRS)).rows


def test_several_pairs_have_standard_errors(run, trained, generator, pairs) -> None:
    point = "mlp.output"  # at the first layer's input effects are 0 or 1, in every pair
    shown = run("patch", trained, "--pairs", pairs, "--point", point, "--json").json
    assert shown["rows"] == patch_positions(generator, **columns(PAIRS), point=point).rows
    assert all(row["standard_error"] is not None for row in shown["rows"])
    people = run("patch", trained, "--pairs", pairs, "--point", point, "--top", 2)
    assert "standard error" in people.out
    assert "standard error" not in run("patch", trained, *TEXTS).out


def test_people_see_the_strongest_parts_first(run, trained) -> None:
    ended = run("patch", trained, *TEXTS, "--point", "residual.before", "--top", 1)
    [title, _, line, part] = ended.out.strip().splitlines()
    assert title.startswith("What residual.before carries, by position: share of the difference")
    assert set(line) == {"─"}
    assert part.split() == ["0", "3", "d", "1.0000"]
    assert "pairs of texts: 1" in ended.err
    assert "patching  5/5" in ended.err


@pytest.mark.parametrize("name", ["patch.html", "PATCH.PNG"])
def test_the_table_is_drawn_as_the_name_asks(run, trained, tmp_path, name) -> None:
    ended = run("patch", trained, *TEXTS, "--out", tmp_path / name)
    assert ended.code == 0, ended.err
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if "PNG" in name else b"<!DOCTYPE html")
    assert str(tmp_path / name) in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs --clean and --corrupt, or --pairs"),
        (("--clean", "abcd>"), "needs --clean and --corrupt, or --pairs"),
        ((*TEXTS, "--pairs", "p.jsonl"), "--pairs has texts and answers of its own"),
        ((*TEXTS, "--point", "head"), "Did you mean 'heads'"),
        ((*TEXTS, "--point", "logits"), "--point 'logits' is none"),
        ((*TEXTS, "--into", "dirty"), "dirty"),
        ((*TEXTS, "--metric", "logits"), "logits"),
        ((*TEXTS, "--top", "0"), "--top is 0"),
        ((*TEXTS, "--out", "patch.pdf"), "ends in .html or .png"),
        ((*TEXTS, "--method", "attribution", "--into", "clean"), "leave out --point and --into"),
        ((*TEXTS[:4], "--right", "xy", "--wrong", "y"), "'xy' is 2 tokens"),
        ((*TEXTS[:3], "abc>", "--right", "x", "--wrong", "y"), "5 tokens, its corrupt one 4"),
        ((*TEXTS[:6], "--wrong", "x"), "'x' alike"),
        (("--clean", "abcd>", "--corrupt", "abcd>", *TEXTS[4:]), "same score"),
        (("--clean", "ab€", "--corrupt", "abc"), "€"),
    ],
)
def test_what_is_wrong_is_said_with_the_fix(run, trained, words, said) -> None:
    ended = run("patch", trained, *words)
    assert ended.code == 2
    assert said in ended.err
    taught = ("fix: ", "Did you mean", "Known: ", "expected")
    assert any(word in ended.err for word in taught), ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no pair"),
        ('{"clean": "a"}', 'line 1: expected texts under "clean" and "corrupt"'),
        ("[]", "line 1: expected texts"),
        ("{", "line 1: not valid JSON"),
        ('\n{"clean": "a", "corrupt": 3}', 'line 2: "corrupt" is 3'),
        ('{"clean": "a", "corrupt": "b", "rigth": "c"}', "Did you mean 'right'"),
        (
            '{"clean": "a", "corrupt": "b", "right": "c"}\n{"clean": "a", "corrupt": "b"}',
            'line 2: "right" stands in some lines',
        ),
        ("\udcff", "byte 0: not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, content, said) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=said):
        read_pairs(path)


def test_a_file_that_is_not_there_is_named(run, trained, tmp_path) -> None:
    ended = run("patch", trained, "--pairs", tmp_path / "none.jsonl")
    assert ended.code == 1
    assert "none.jsonl: No such file" in ended.err


def test_answers_that_no_line_has_are_the_models(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"clean": "a", "corrupt": "b", "right": "c"}')
    assert read_pairs(path) == {"clean": ["a"], "corrupt": ["b"], "right": ["c"], "wrong": None}


def test_every_metric_has_a_name_and_an_arithmetic() -> None:
    assert tuple(METRICS) == tuple(METRIC_NAMES) == get_args(Metric)


def test_progress_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    from stepwell.cli.console import Output

    seconds = iter([0.0, 0.0, 5.0, 20.0])
    with StudyProgress(Output(), "patching", clock=lambda: next(seconds)) as progress:
        progress(25, 100)
        progress(100, 100)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "patching  25/100  0:15 left"
    assert last == "patching  100/100"
    with StudyProgress(Output(), "patching"):
        pass
    assert capsys.readouterr().err == "", "nothing where nothing was read"
