"""`stepwell cascade collect`, `calibrate`, `fit`: what they leave, say, ask once and refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.mmlu_cache import put_mmlu
from support.openai_server import OpenAIServer
from support.processes import free_port
from support.question_ladders import check_refused, question_ladder
from support.tiny_ladders import tiny_ladder

from stepwell.cascade import collection
from stepwell.cascade.fitted import Fitted
from stepwell.cascade.stages.local import LocalStage
from stepwell.cli import main
from stepwell.generate.text import TextGenerator
from stepwell.train.trainer import Trainer

Run = Callable[..., Any]
FACTS = 64
KEPT = {"collection.json", "costs.json", "part-00000.json", "part-00000.safetensors"}


@pytest.fixture(scope="module")
def trained_ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ladder that was fitted, from nothing; to be read only."""
    file = tiny_ladder(tmp_path_factory.mktemp("facts") / "ladder.yaml", facts=FACTS)
    assert main(["cascade", "fit", str(file), "--quiet"]) == 0
    return file.parent


@pytest.fixture
def facts(trained_ladder: Path, tmp_path: Path) -> Path:
    """A ladder file with its trained stages, of which nothing was asked yet."""
    folder = shutil.copytree(trained_ladder, tmp_path / "facts")
    for name in ("ladder.collected", "ladder.fitted"):
        shutil.rmtree(folder / name)
    return folder / "ladder.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ladder over a file of questions; to be read only."""
    return question_ladder(tmp_path_factory.mktemp("file")).parent


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A copy of that ladder's file, to be changed."""
    return shutil.copytree(made, tmp_path / "file") / "ladder.yaml"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The name of each stage that is asked, with how many prompts."""
    noted: list[tuple[str, int]] = []
    real = LocalStage.generate

    def generate(stage: LocalStage, prompts: Any, **options: Any) -> Any:
        noted.append((stage.name, len(prompts)))
        return real(stage, prompts, **options)

    monkeypatch.setattr(LocalStage, "generate", generate)
    return noted


def change(file: Path, **fields: Any) -> Path:
    """The ladder file with other fields."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **fields}))
    return file


def change_stage(file: Path, number: int, **fields: Any) -> Path:
    """The ladder file with other fields of a stage; None removes one."""
    stages = yaml.safe_load(file.read_text())["stages"]
    merged = {**stages[number], **fields}
    stages[number] = {name: value for name, value in merged.items() if value is not None}
    return change(file, stages=stages)


def kept(file: Path) -> set[str]:
    """The names of what was collected."""
    return {path.name for path in file.with_suffix(".collected").iterdir()}


def test_from_nothing_to_a_ladder_that_decides(trained_ladder: Path) -> None:
    names = {path.name for path in trained_ladder.iterdir()}
    assert names == {"ladder.yaml", "small", "large", "ladder.collected", "ladder.fitted"}
    assert kept(trained_ladder / "ladder.yaml") == KEPT
    fitted = Fitted.load(trained_ladder / "ladder.fitted")
    assert [stage.name for stage in fitted.costs.stages] == ["small", "large"]
    assert fitted.certificate is None  # facts are not independent draws


def test_collect_says_how_often_each_stage_is_right(
    facts: Path, run: Run, asked: list[tuple[str, int]]
) -> None:
    ended = run("cascade", "collect", facts, "--json")
    assert ended.code == 0
    assert asked == [("small", FACTS), ("large", FACTS)]
    assert ended.json["questions"] == FACTS
    right = ended.json["right"]
    assert 0 <= right["small"] < right["large"] <= 1
    assert kept(facts) == KEPT - {"costs.json"}
    assert f"Asking small, large {FACTS} questions" in ended.err
    shown = run("cascade", "collect", facts).out
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["small", "large"]


def test_collect_twice_asks_nothing(file: Path, run: Run, asked: list[tuple[str, int]]) -> None:
    first = run("cascade", "collect", file, "--json")
    assert asked == [("small", 64), ("large", 64)]
    before = {path: path.read_bytes() for path in file.with_suffix(".collected").iterdir()}
    asked.clear()
    again = run("cascade", "collect", file, "--json")
    assert asked == []
    assert again.json == first.json
    assert before == {path: path.read_bytes() for path in before}


def test_a_larger_number_asks_for_the_rest(
    file: Path, run: Run, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "PART", 16)
    assert run("cascade", "collect", file, "--num-samples", 32, "--json").json["questions"] == 32
    asked.clear()
    assert run("cascade", "collect", file, "--num-samples", 50, "--json").json["questions"] == 50
    assert asked == [("small", 16), ("large", 16), ("small", 2), ("large", 2)]
    asked.clear()
    fewer = run("cascade", "collect", file, "--num-samples", 20, "--json")
    assert (fewer.json["questions"], asked) == (20, [])
    all_of_it = run("cascade", "collect", file, "--json").json
    assert all_of_it["questions"] == 64
    shutil.rmtree(file.with_suffix(".collected"))
    assert run("cascade", "collect", file, "--json").json == all_of_it  # as if asked at once


def test_an_interrupt_between_parts_loses_nothing(
    file: Path, run: Run, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "PART", 16)
    counted = LocalStage.generate

    def interrupted(stage: LocalStage, prompts: Any, **options: Any) -> Any:
        if len(asked) == 5:  # the large stage, in the third part
            raise KeyboardInterrupt
        return counted(stage, prompts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStage, "generate", interrupted)
        assert run("cascade", "collect", file).code == 130
    assert len(kept(file)) == 1 + 2 * 2
    asked.clear()
    assert run("cascade", "collect", file).code == 0
    assert asked == [("small", 16), ("large", 16)] * 2


def test_answers_to_questions_that_were_changed_are_refused(file: Path, run: Run) -> None:
    assert run("cascade", "collect", file).code == 0
    questions = file.parent / "questions.jsonl"
    first, *others = questions.read_text().splitlines(keepends=True)
    row = {**json.loads(first), "answer": "something else"}
    questions.write_text("".join([json.dumps(row) + "\n", *others]))
    ended = run("cascade", "collect", file)
    assert ended.code == 1
    assert "asked for otherwise: its source" in ended.err


def test_calibrate_measures_every_stage_at_both_sizes(file: Path, run: Run) -> None:
    ended = run("cascade", "calibrate", file, "--json")
    assert set(ended.json) == {"small", "large"}
    for stage in ended.json.values():
        assert set(stage["seconds"]) == set(stage["verified"]) == {"16", "1"}
        assert all(value > 0 for value in stage["seconds"].values())
        assert stage["flops"] > 0
    assert kept(file) == {"costs.json"}
    shown = run("cascade", "calibrate", file).out
    for words in ("ms, batch 16", "verified, batch 1", "MFLOPs", "small", "large"):
        assert words in shown


def test_fit_asks_and_measures_only_what_is_not_there(
    file: Path, run: Run, asked: list[tuple[str, int]]
) -> None:
    assert run("cascade", "collect", file, "--quiet").code == 0
    costs = run("cascade", "calibrate", file, "--json").json
    asked.clear()
    ended = run("cascade", "fit", file, "--json")
    assert ended.code == 0
    assert asked == []
    fitted = Fitted.load(file.with_suffix(".fitted"))
    assert ended.json["fitted"] == str(file.with_suffix(".fitted"))
    assert ended.json["lambda"] == pytest.approx(fitted.lam)
    assert ended.json["certificate"]["prompts"] == fitted.certificate.prompts
    assert {stage.name: stage.seconds for stage in fitted.costs.stages} == {
        name: stage["seconds"] for name, stage in costs.items()
    }
    assert "lambda, the price of a failure" in ended.err
    assert "not certified" in ended.err  # a dozen prompts are too few for 2%


def test_costs_of_another_ladder_are_measured_again(file: Path, run: Run) -> None:
    """Negative control: without the change, nothing is measured."""
    assert run("cascade", "fit", file).code == 0
    assert "Measuring" not in run("cascade", "fit", file).err
    change(file, serving={"max_rows": 8})
    ended = run("cascade", "fit", file)
    assert (ended.code, "Measuring what an answer costs, 8 at once" in ended.err) == (0, True)
    assert "8" in Fitted.load(file.with_suffix(".fitted")).costs.stages[0].seconds


def test_fit_trains_what_is_not_there_and_nothing_else(
    facts: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    real = Trainer.gradients

    def gradients(trainer: Trainer, batch: Any) -> Any:
        trained.append(trainer.config.directory.name)
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "gradients", gradients)
    shutil.rmtree(facts.parent / "small")
    assert run("cascade", "fit", facts).code == 0
    assert set(trained) == {"small"}


def test_a_certificate_is_said_and_kept(file: Path, run: Run) -> None:
    """Half of all answers may be lost: the cheapest rule has that, and a dozen prompts show it."""
    terms = {"certificate": {"epsilon": 0.9, "delta": 0.2}}
    ended = run("cascade", "fit", change(file, policy={"lambda": terms}), "--json")
    assert "certified: excess loss at most 90% with probability 80%" in ended.err
    fitted = Fitted.load(file.with_suffix(".fitted"))
    assert fitted.certificate is not None
    assert fitted.certificate.certified
    assert ended.json["certificate"] == json.loads(json.dumps(fitted.certificate.to_plain()))
    [answer] = run("cascade", "run", file, "the cat", "--json").json
    assert answer["certified"] is True


def test_several_answers_a_question_are_fitted_without_a_certificate(file: Path, run: Run) -> None:
    questions = {"file": "questions.jsonl", "rollouts": 2}
    sampled = {"temperature": 1.0, "max_new_tokens": 4}
    ended = run("cascade", "fit", change(file, questions=questions, sampling=sampled), "--json")
    assert ended.code == 0
    assert ended.json["certificate"] is None
    shares = Fitted.load(file.with_suffix(".fitted")).calibration.good
    assert set(np.unique(shares)) <= {0.0, 0.5, 1.0}


def test_a_ladder_is_asked_a_public_data_set_where_it_lies_here(
    file: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    change(file, questions={"dataset": "mmlu"}, sampling={"temperature": 0, "max_new_tokens": 2})
    refused = run("cascade", "fit", file, "--quiet")
    check_refused(
        refused, 1, "holds no test questions of MMLU", "fetch them where there is a network"
    )
    rows = [
        {"question": f"the {number} cats", "choices": list("abcd"), "answer": number % 4}
        for number in range(40)
    ]
    put_mmlu(tmp_path / "cache", "cats", rows)
    ended = run("cascade", "fit", file, "--num-samples", 30, "--json")
    assert ended.code == 0
    prompts = Fitted.load(file.with_suffix(".fitted")).calibration.good
    assert 0 < len(prompts) < 30
    assert run("cascade", "collect", file, "--json").json["questions"] == 40


def without_answer(file: Path) -> None:
    path = file.parent / "questions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"prompt": "the cat"}', *lines[3:]]))


def too_few(file: Path) -> None:
    path = file.parent / "questions.jsonl"
    path.write_text(path.read_text().splitlines()[0])


REFUSED: dict[str, tuple[Callable[[Path], Any], int, str, str]] = {
    "a row without an answer": (
        without_answer, 1, 'questions.jsonl, line 3: expected text or a number under "answer"', "",
    ),
    "no file of questions": (
        lambda file: (file.parent / "questions.jsonl").unlink(), 1, "No such file", "give the path",
    ),
    "nothing to ask": (
        lambda file: change(file, questions={}), 2, "does not say what to ask", "add `questions:",
    ),
    "too few questions": (too_few, 1, "none is left for the", "collect more"),
    "an unknown feature group": (
        lambda file: change(file, predictor={"features": ["logprob"]}), 2, "logprob", "logprobs",
    ),
    "no model and no recipe": (
        lambda file: change_stage(file, 0, model="nowhere"), 1,
        "Stage 'small' has no `train:` that would make a model in", "say how to train it",
    ),
    "a budget below the cheapest rule": (
        lambda file: change(file, policy={"lambda": {"budget": 1e-6}}), 1, "the budget is 1e-06",
        "raise the budget",
    ),
    "a certificate of shares": (
        lambda file: change(
            file,
            policy={"lambda": {"certificate": {}}},
            questions={"file": "questions.jsonl", "rollouts": 2},
        ), 2, "asks for a certificate, which this ladder cannot have", "say `lambda: auto`",
    ),
    "a server that is not there": (
        lambda file: change_stage(file, 1, server=f"http://127.0.0.1:{free_port()}"), 1,
        "Stage 'large' at http://127.0.0.1:", "see whether the server runs",
    ),
    "a key that is not set": (
        lambda file: change_stage(
            file, 1, server=f"http://127.0.0.1:{free_port()}", api_key_env="NOBODYS_KEY"
        ), 1, "NOBODYS_KEY is not set", "export NOBODYS_KEY",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_fitted_is_said_with_a_fix(kind: str, file: Path, run: Run) -> None:
    spoil, code, said, fix = REFUSED[kind]
    spoil(file)
    check_refused(run("cascade", "fit", file, "--quiet"), code, said, fix)


def test_an_error_is_json_where_json_was_asked_for(file: Path, run: Run) -> None:
    change(file, predictor={"features": ["logprob"]})
    ended = run("cascade", "fit", file, "--json", "--quiet")
    error = json.loads(ended.err)["error"]
    assert (error["type"], error["exit_code"]) == ("ConfigError", 2)
    assert ended.out == ""


def test_what_could_be_known_before_is_said_before_training(
    facts: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("it trains"))
    shutil.rmtree(facts.parent / "small")
    certain = {"lambda": {"certificate": {"epsilon": 0.1}}}
    for spoilt in ({"predictor": {"features": ["x"]}}, {"questions": {"file": "no.jsonl"}}):
        plain = yaml.safe_load(facts.read_text())
        assert run("cascade", "fit", change(facts, **spoilt)).code in (1, 2)
        facts.write_text(yaml.safe_dump(plain))
    ended = run("cascade", "fit", change(facts, policy=certain))
    assert ended.code == 2
    assert "no two facts are independent draws" in ended.err
    assert run("cascade", "collect", facts, "--num-samples", 0).code == 2


def test_a_server_is_asked_as_a_stage_like_any_other(file: Path, run: Run) -> None:
    with OpenAIServer(TextGenerator.load(file.parent / "large")) as server:
        change_stage(file, 1, model=None, server=server.url, parameters=1e5)
        ended = run("cascade", "collect", file, "--json")
        assert ended.code == 0
        assert ended.json["right"]["large"] == 1  # the answers are its own greedy texts
        assert 0.2 < ended.json["right"]["small"] < 0.9
        assert len(server.asked()) == 64
        assert run("cascade", "collect", file).code == 0
        assert len(server.asked()) == 64
