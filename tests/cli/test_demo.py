"""The demonstration in miniature: 64 facts, stages of a moment, everything else as it is."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwell.cascade.fitted import Fitted
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.pipeline import Cascade
from stepwell.cli.demo import Demo
from stepwell.errors import UsageError
from stepwell.evals import facts_ladder
from stepwell.model.presets import presets
from stepwell.tasks.facts import Facts
from stepwell.train.trainer import Trainer

Run = Callable[..., Any]
FACTS = Facts(facts=64)
SIZES = {"small": (16, 1, 10), "middle": (32, 1, 24), "large": (48, 2, 60)}
MADE = {
    *("ladder.yaml", "ladder.fitted", "report.html", "results.json"),
    *("frontier.png", "difficulty.png", "reliability.png", "loss.png", "attention.png"),
}


def miniature() -> LadderConfig:
    """The demonstration's ladder with other sizes."""
    stages = []
    for name, (width, layers, steps) in SIZES.items():
        shape = presets["tiny"].resized(width=width, num_layers=layers, num_heads=2)
        train = {
            "task": {"name": "facts", "facts": FACTS.facts},
            "model": shape.plain(),
            "steps": steps,
            "batch_size": 64,
            "evaluation_batches": 1,
            "optimizer": {"lr": 1e-2, "schedule": "linear", "weight_decay": 0.0},
        }
        stages.append({"name": name, "model": f"../facts-{name}", "train": train})
    sampling = {"temperature": 0.0, "max_new_tokens": 3}
    return LadderConfig.parse({"stages": stages, "sampling": sampling, "serving": {"max_rows": 16}})


@pytest.fixture(autouse=True)
def small_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_ladder, "facts_ladder", miniature)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs after one demonstration; to be read only."""
    from stepwell.cli import main

    runs = tmp_path_factory.mktemp("demonstration") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts_ladder, "facts_ladder", miniature)
        assert main(["demo", "--out", str(runs / "demo"), "--quiet", "--json"]) == 0
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are taken while a test runs."""
    taken: list[int] = []
    real = Trainer.gradients

    def gradients(trainer: Trainer, batch: Any) -> Any:
        taken.append(1)
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "gradients", gradients)
    return taken


def test_it_leaves_a_ladder_that_answers_and_a_report(finished: Path, run: Run) -> None:
    made = finished / "demo"
    assert {path.name for path in made.iterdir()} == MADE
    assert {path.name for path in finished.iterdir()} == {"demo", *(f"facts-{s}" for s in SIZES)}
    assert LadderConfig.read(made / "ladder.yaml") == miniature()
    assert len(Fitted.load(made / "ladder.fitted").fingerprints) == 3
    assert all(path.stat().st_size > 1000 for path in made.glob("*.png"))
    report = (made / "report.html").read_text()
    for words in ("Cost against quality", "What is believed", "random mixing", "stepwell demo"):
        assert words in report
    results = json.loads((made / "results.json").read_text())
    assert [rule["name"] for rule in results["rules"]][:2] == ["always small", "always middle"]
    assert results["batch"] == 16
    quality = [rule["quality"] for rule in results["rules"]]
    assert quality[0] < quality[2]  # training taught the larger one more


def test_a_second_run_reuses_what_is_there_and_says_what_it_does(
    runs: Path, run: Run, steps: list[int]
) -> None:
    kept = [
        runs / "demo/ladder.yaml",
        runs / "demo/ladder.fitted/fit.json",
        *(runs / f"facts-{name}/model.safetensors" for name in SIZES),
    ]
    before = [path.read_bytes() for path in kept]
    ended = run("demo", "--out", runs / "demo")
    assert ended.code == 0
    assert not steps
    assert [path.read_bytes() for path in kept] == before
    for reused in ("ladder", "small", "middle", "large", "stopping rule"):
        assert f"{reused}: reusing" in ended.err
    said = (
        *("Training 3 sizes of a model on 64 facts", "Asking every stage for every fact"),
        *("Fitting the stopping rule", "Answering 21 facts", "The price of a failure"),
        *("Some answers", "Done", "Report: ", "Next:"),
    )
    places = [ended.err.index(words) for words in said]
    assert places == sorted(places)
    assert ended.out.startswith("Going only as deep as each prompt needs took")
    suggested = [shlex.split(line) for line in ended.err.split("Next:")[1].strip().splitlines()]
    assert all(words[0] == "stepwell" for words in suggested)
    assert [run(*words[1:]).code for words in suggested[:2]] == [0, 0]


def test_json_is_all_there_is_on_standard_output_and_a_ladder_edited_by_hand_is_kept(
    runs: Path, run: Run
) -> None:
    file = runs / "demo/ladder.yaml"
    plain = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**plain, "policy": {"lambda": 0.0}}))
    ended = run("demo", "--out", runs / "demo", "--json")
    assert ended.json["ladder"] == str(file)
    assert ended.json["report"] == str(runs / "demo/report.html")
    assert LadderConfig.read(file).policy.lam == 0.0
    by_name = {rule["name"]: rule for rule in ended.json["rules"]}
    assert by_name["ladder"]["stages_run"] == pytest.approx(1.0)
    assert "reusing" in ended.err


def test_fresh_starts_over_and_touches_nothing_else(runs: Path, run: Run, steps: list[int]) -> None:
    (runs / "demo/notes.txt").write_text("mine")
    edited = LadderConfig.read(runs / "demo/ladder.yaml").changed(costs="flops")
    edited.write(runs / "demo/ladder.yaml")
    before = (runs / "demo/ladder.fitted/costs.json").read_bytes()
    ended = run("demo", "--out", runs / "demo", "--fresh")
    assert ended.code == 0
    assert len(steps) == sum(size[2] for size in SIZES.values())
    assert "reusing" not in ended.err
    assert "lambda, the price of a failure" in ended.err
    assert LadderConfig.read(runs / "demo/ladder.yaml") == miniature()
    assert (runs / "demo/ladder.fitted/costs.json").read_bytes() != before
    assert (runs / "demo/notes.txt").read_text() == "mine"


def test_a_damaged_stopping_rule_is_fitted_again(runs: Path, run: Run, steps: list[int]) -> None:
    path = runs / "demo/ladder.fitted/predictor.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    ended = run("demo", "--out", runs / "demo")
    assert ended.code == 0
    assert not steps
    assert "predictor.json is missing or damaged" in ended.err
    Fitted.load(path.parent)


def test_another_ladder_is_not_taken_for_the_demonstrations(runs: Path, run: Run) -> None:
    file = runs / "demo/ladder.yaml"
    plain = yaml.safe_load(file.read_text())
    plain["stages"][1]["train"]["task"]["facts"] = 32
    file.write_text(yaml.safe_dump(plain))
    ended = run("demo", "--out", runs / "demo")
    assert ended.code == 2
    assert "do not all learn the same facts" in ended.err


def test_ctrl_c_saves_and_the_same_command_goes_on(
    tmp_path: Path, run: Run, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Trainer.gradients

    def interrupted(trainer: Trainer, batch: Any) -> Any:
        if len(steps) == 20:
            raise KeyboardInterrupt
        return counted(trainer, batch)

    out = tmp_path / "runs/demo"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradients", interrupted)
        assert run("demo", "--out", out).code == 130

    def enough(*_: Any) -> None:
        raise UsageError("The stages are trained.")

    monkeypatch.setattr(Demo, "ask", enough)
    ended = run("demo", "--out", out)
    assert "The stages are trained." in ended.err
    assert len(steps) == sum(size[2] for size in SIZES.values())
    assert "small: reusing" in ended.err
    assert "middle: reusing" not in ended.err


def test_the_ladder_answers_prompts(finished: Path, run: Run) -> None:
    file, fact = finished / "demo/ladder.yaml", FACTS.all()[0]
    ended = run("cascade", "run", file, fact.prompt, "--lambda", 1000, "--json")
    [answer] = ended.json
    expected = Cascade.load(file).generate(fact.prompt, lam=1000.0)
    assert (answer["prompt"], answer["text"]) == (fact.prompt, expected.text)
    assert [visit["stage"] for visit in answer["trace"]] == [
        visit.stage for visit in expected.trace
    ]
    assert answer["cost"] == pytest.approx(expected.cost)
    shown = run("cascade", "run", file, fact.prompt)
    assert shown.out.startswith(fact.prompt)
    assert "believed" in shown.out


def test_a_file_of_prompts_becomes_a_file_of_answers(
    finished: Path, run: Run, tmp_path: Path
) -> None:
    file, facts = finished / "demo/ladder.yaml", FACTS.all()[:20]
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [json.dumps({"prompt": fact.prompt, "id": n}) for n, fact in enumerate(facts)]
    prompts.write_text("\n".join(lines))
    ended = run("cascade", "run", file, "--input", prompts, "--output", answers, "--json")
    assert ended.json == {"output": str(answers), "prompts": 20}
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(row["id"], row["prompt"]) for row in rows] == [
        (n, fact.prompt) for n, fact in enumerate(facts)
    ]
    expected = Cascade.load(file).generate_batch([fact.prompt for fact in facts])
    assert [row["text"] for row in rows] == [answer.text for answer in expected]
    same = run("cascade", "run", file, "--input", prompts, "--output", prompts)
    assert same.code == 2
    assert prompts.read_text() == "\n".join(lines)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "There is no prompt"),
        (["abcd>", "--lambda", "-1"], 2, "expected a finite number from 0"),
        (["abcd>", "--lambda", "nan"], 2, "expected a finite number from 0"),
        (["abcd>", "--top-p", "7"], 2, "top_p is 7"),
        (["ABCD>"], 2, "error"),
    ],
)
def test_what_cannot_be_asked_is_said(
    finished: Path, run: Run, words: list[str], code: int, said: str
) -> None:
    ended = run("cascade", "run", finished / "demo/ladder.yaml", *words)
    assert ended.code == code
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) <= 3
    assert ended.out == ""
