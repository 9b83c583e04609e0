"""The study of temperature by command: questions from a task or a file, a folder, and going on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stepwell.evals import temperature as study_module
from stepwell.generate.engine import InferenceEngine

FEW = ("--samples", "2", "--temperatures", "0,1.5", "--input-end", "5")
TEMPLATES = """
format_version: 1
templates:
  ask: {fields: [key], text: "{key}>", models: {other*: "{key}>>"}}
  tell: {fields: [key, value], text: "{key}>{value}"}
"""


@pytest.fixture
def study(run, trained: Path, tmp_path: Path):
    """Runs the study of the small model into a folder of the test's own."""

    def call(*words: object):
        return run("experiment", "temperature", trained, "--out", tmp_path / "out", *words)

    return call


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.jsonl"
    path.write_text('{"key": "abcd", "answer": "efg"}\n{"key": "zyxw", "answer": "123 = 4"}\n')
    return path


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    path = tmp_path / "templates.yaml"
    path.write_text(TEMPLATES)
    return path


def test_the_task_is_that_of_the_models_run(study, tmp_path) -> None:
    ended = study(*FEW, "--json")
    assert ended.code == 0, ended.err
    questions = ended.json["configuration"]["questions"]
    assert questions["task"]["name"] == "facts"
    assert questions["task"]["facts"] == 8, "and not the task's default"
    assert (questions["start"], questions["end"]) == (0, 5)
    assert [row["samples"] for row in ended.json["rows"]] == [1, 2]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        *("results.json", "answers.jsonl", "report.html", "answers.sqlite"),
        *("accuracy.png", "entropy.png", "confident.png"),
    }
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"directory": str(tmp_path / "out"), **results} == ended.json


def test_the_fields_of_the_task_are_flags(study) -> None:
    ended = study(*FEW, "--task", "facts", "--facts", 4, "--json")
    assert ended.json["configuration"]["questions"]["task"]["facts"] == 4
    assert ended.json["configuration"]["num_questions"] <= 4


def test_flags_reach_the_study(study) -> None:
    words = ("--seed", 7, "--top-k", 3, "--max-new-tokens", 2, "--batch-size", 3, "--strict")
    found = study(*FEW, *words, "--threshold", "0.25,0.5", "--json").json
    known = found["configuration"]
    assert known["sampling"].items() >= {"seed": 7, "top_k": 3, "max_new_tokens": 2}.items()
    assert (known["batch_size"], known["strict"]) == (3, True)
    assert [each["threshold"] for each in found["rows"][0]["confident"]] == [0.25, 0.5]


def test_people_see_a_table_with_intervals(study) -> None:
    ended = study(*FEW)
    assert re.search(r"^temperature +accuracy +majority +agreement", ended.out)
    assert re.search(r"^1\.5 +\d+\.\d% \[\d+\.\d, \d+\.\d\]", ended.out, re.MULTILINE)
    assert "report.html" in ended.err
    assert study(*FEW, "--quiet").err == ""


def test_the_same_command_asks_nothing_anew(study, monkeypatch) -> None:
    first = study(*FEW, "--json").json

    def refused(self, request, **how):
        raise AssertionError("it asked")

    monkeypatch.setattr(InferenceEngine, "submit", refused)
    again = study(*FEW, "--json")
    assert again.json["configuration"] == first["configuration"]
    assert [row["accuracy"] for row in again.json["rows"]] == [
        row["accuracy"] for row in first["rows"]
    ]
    assert "answers were there already" in again.err


def test_ctrl_c_is_130_keeps_answers_and_says_how_to_go_on(study, monkeypatch, tmp_path) -> None:
    summarise = study_module.summarise

    def interrupted(*given, **how):
        if given[0][0][0].temperature:
            raise KeyboardInterrupt
        return summarise(*given, **how)

    monkeypatch.setattr(study_module, "summarise", interrupted)
    ended = study(*FEW)
    assert ended.code == 130
    assert re.search(r"interrupted\. \d+ answers are kept in .*answers\.sqlite", ended.err)
    assert "same command goes on" in ended.err
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.undo()
    assert study(*FEW).code == 0


def test_a_file_of_questions_is_asked_through_a_template(study, keys, templates) -> None:
    words = ("--input", keys, "--template", templates, "--template-name", "ask", "--json")
    ended = study(*FEW, *words)
    assert ended.code == 0, ended.err
    assert ended.json["configuration"]["questions"].keys() >= {"rows", "template", "check"}
    assert ended.json["configuration"]["num_questions"] == 2
    lines = (Path(ended.json["directory"]) / "answers.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in lines} == {"abcd>", "zyxw>"}


def test_generate_fills_a_template_from_the_rows_of_its_input(
    run, trained, keys, templates
) -> None:
    target = keys.with_name("answers.jsonl")
    words = ("generate", trained, "--input", keys, "--output", target)
    assert run(*words, "--template", templates, "--template-name", "ask").code == 0
    prompts = [json.loads(line)["prompt"] for line in target.read_text().splitlines()]
    assert prompts == ["abcd>", "zyxw>"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--template", "TEMPLATES"), "Which template? Known: ask, tell."),
        (("--template", "TEMPLATES", "--template-name", "aks"), "Did you mean 'ask'?"),
        (("--template", "TEMPLATES", "--template-name", "tell"), "keys.jsonl, line 1: Template"),
        (("--template", "nowhere.yaml"), "cannot be read"),
        (("--template-name", "ask"), "--template-name needs --template"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(run, trained, keys, templates, words, said) -> None:
    named = [str(templates) if word == "TEMPLATES" else word for word in words]
    target = keys.with_name("answers.jsonl")
    for ended in (
        run("generate", trained, "--input", keys, "--output", target, *named),
        run("experiment", "temperature", trained, "--input", keys, *named),
    ):
        assert ended.code == 2
        assert said in ended.err
    assert not target.exists()


def test_a_template_is_not_for_one_prompt(run, trained, templates) -> None:
    ended = run("generate", trained, "abcd>", "--template", templates)
    assert ended.code == 2
    assert "--template needs --input" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--temperatures", "0,warm"), "--temperatures '0,warm': expected numbers"),
        (("--temperatures", "1,1"), "expected different ones"),
        (("--temperature", "1"), "Did you mean --temperatures?"),
        (("--threshold", "2"), "thresholds are [2.0]"),
        (("--samples", "0"), "n is 0"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--input-start", "7"), "no questions from 7 up to 5"),
        (("--check", "number"), "are for the rows of --input"),
        (("--task", "dag"), "does not ask for one answer"),
        (("--task", "fcts"), "Did you mean 'facts'?"),
        (("--task", "facts", "--input", "x.jsonl"), "--input is in the place of a task"),
    ],
)
def test_what_cannot_be_is_refused(study, tmp_path, words, said) -> None:
    ended = study("--input-end", 5, *words)
    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_model_without_a_run_needs_a_task(run, trained, tmp_path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    ended = run("experiment", "temperature", tmp_path, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "What shall be asked?" in ended.err
