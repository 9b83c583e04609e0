"""`stepwell eval` as it is typed: the table, the files that it writes, and what may go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stepwell.cli.interventions import read_interventions
from stepwell.errors import HookError, StepwellError, UsageError
from stepwell.evals.evaluate import evaluate
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import ZeroHeads

ZEROED = '[{"zero_heads": {"0": [0]}}]'


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """A task file: the eight facts that the tiny model was trained on."""
    path = tmp_path / "facts.yaml"
    path.write_text("kind: task\ntask: {name: facts, facts: 8}\nnum_documents: 6\n")
    return path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """A task file with two documents."""
    path = tmp_path / "choices.yaml"
    documents = [{"k": key, "choices": ["abc", "xyz"], "answer": 0} for key in ("abcd", "efgh")]
    values = {"kind": "multiple_choice", "prompt": "{k}>", "delimiter": "", "documents": documents}
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_results_are_those_of_python(run, trained: Path, facts: Path, choices: Path) -> None:
    shown = run("eval", trained, "--tasks", f"{facts},{choices}", "--json").json
    expected = evaluate(TextGenerator.load(trained, device="cpu"), [facts, choices])
    assert shown["tasks"] == [result.plain() for result in expected]
    assert shown["model"] == str(trained)
    assert set(shown["tasks"][0]["metrics"]["accuracy"]) == {"estimate", "low", "high"}


def test_a_person_sees_a_line_for_each_metric(run, trained: Path, choices: Path) -> None:
    ended = run("eval", trained, "--tasks", choices)
    assert ended.code == 0
    rows = [line.split() for line in ended.out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["choices", "acc_norm"]
    assert rows[0][1] == "acc"
    assert rows[0][-1] == "2"
    assert "4/4" in ended.err
    assert run("eval", trained, "--tasks", choices, "--quiet").err == ""


def test_files_hold_results_and_samples(
    run, trained: Path, facts: Path, choices: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out" / "scores.json", tmp_path / "samples.jsonl"
    words = ("--tasks", f"{facts},{choices}", "--limit", 1, "--out", out, "--log-samples", log)
    ended = run("eval", trained, *words, "--json")
    assert json.loads(out.read_text()) == ended.json
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["facts", "choices"]
    assert len(lines[1]["logprobs"]) == 2
    assert str(out) in ended.err


def test_the_same_command_makes_no_answer_again(
    run, trained: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", trained, "--tasks", facts, "--cache", tmp_path / "kept.sqlite", "--json")
    first = run(*words).json
    monkeypatch.setattr(
        "stepwell.generate.engine.InferenceEngine.submit", lambda *_, **__: pytest.fail("anew")
    )
    assert run(*words).json == first


def test_interventions_are_used_and_recorded(
    run, trained: Path, choices: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "plain.jsonl", tmp_path / "zeroed.jsonl"
    run("eval", trained, "--tasks", choices, "--log-samples", logs[0])
    words = ("--interventions", ZEROED, "--log-samples", logs[1], "--json")
    ended = run("eval", trained, "--tasks", choices, *words)
    assert ended.json["interventions"][0]["zero_heads"]["heads"] == {"0": [0]}
    assert logs[0].read_text() != logs[1].read_text()
    file = tmp_path / "zeroed.json"
    file.write_text(ZEROED)
    assert read_interventions(str(file)) == read_interventions(ZEROED) == (ZeroHeads({0: [0]}),)
    assert read_interventions("") == read_interventions("[]") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{", "not valid JSON: Expecting property name"),
        ('[{"zero_hats": {}}]', "no intervention 'zero_hats'. Did you mean 'zero_heads'"),
        ("gone.json", "neither a JSON list nor a file"),
    ],
)
def test_interventions_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(StepwellError) as raised:
        read_interventions(text)
    assert isinstance(raised.value, UsageError | HookError)
    assert said in raised.value.problem


def test_a_head_that_the_model_lacks_is_an_error(run, trained: Path, choices: Path) -> None:
    wrong = '[{"zero_heads": {"0": [7]}}]'
    ended = run("eval", trained, "--tasks", choices, "--interventions", wrong)
    assert ended.code == 2
    assert "not 7" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "nothing to be measured"),
        (("--tasks", ","), 2, "nothing to be measured"),
        (("--tasks", "gone.yaml", "--include-path", "d"), 2, "--include-path needs --lm-eval"),
        (("--tasks", "gone.yaml", "--apply-chat-template"), 2, "needs --lm-eval"),
        (("--tasks", "gone.yaml"), 2, "gone.yaml cannot be read"),
        (("--tasks", "gone.yaml", "--limit", "0"), 2, "--limit is 0"),
        (("--tasks", "gone.yaml", "--batch-size", "0"), 2, "--batch-size is 0"),
        (("--tasks", "gone.yaml", "--num-fewshot", "-1"), 2, "--num-fewshot is -1"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    run, words: tuple[str, ...], code: int, said: str
) -> None:
    ended = run("eval", "no/such/model", *words)
    assert ended.code == code
    assert said in ended.err


def test_tasks_of_lm_eval_stand_beside_those_of_ones_own(
    run, trained: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"k": "abcd", "v": "xyz"}\n{"k": "efgh", "v": "abc"}\n')
    task = {
        "task": "written",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{k}}>",
        "doc_to_target": "v",
        "generation_kwargs": {"until": ["z"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "written.yaml").write_text(yaml.safe_dump(task))
    log = tmp_path / "samples.jsonl"
    words = ("--lm-eval", "written", "--include-path", folder, "--log-samples", log)
    shown = run("eval", trained, "--tasks", facts, *words, "--json").json
    assert [result["task"] for result in shown["tasks"]] == ["facts", "written"]
    assert shown["tasks"][1]["num"] == 2
    assert set(shown["tasks"][1]["metrics"]) == {"exact_match"}
    assert [json.loads(line)["task"] for line in log.read_text().splitlines()][-2:] == (
        ["written"] * 2
    )


def test_without_lm_eval_the_error_says_how_to_get_it(
    run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepwell.evals.lm_eval.importlib.util.find_spec", lambda name: None)
    ended = run("eval", "no/such/model", "--lm-eval", "gsm8k")
    assert ended.code == 2
    assert 'pip install "stepwell[eval]"' in ended.err
