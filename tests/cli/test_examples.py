"""The examples run as they are shown, with the flags of `stepwell train`."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from stepwell.cascade.beliefs.features import select
from stepwell.cascade.build import trainer_config
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.stages.launch import Launcher
from stepwell.config import read_yaml, write_yaml
from stepwell.tasks import SPLITS
from stepwell.train.config import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--num-layers", "1", "--width", "16", "--num_heads", "2", "--batch-size", "4"),
    *("--steps", "3", "--evaluation-batches", "1", "--samples", "1", "--run-name", "mine"),
)
LADDERS = sorted((ROOT / "examples" / "ladders").glob("*.yaml"))
EXAMPLES = {
    "var_rename": (["--names", "6"], "confidence"),
    "var_eval": (["--statements", "6"], "accuracy"),
    "dag": (["--nodes", "8"], "accuracy of yes"),
    "shakespeare": (["--window", "16"], "bits per token"),
}


def start(name: str, *words: object) -> int:
    """The exit code of `python -m examples.NAME WORDS`, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"examples.{name}", run_name="__main__", alter_sys=True)
    return int(ended.value.code)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_and_goes_on(run, name: str, tmp_path: Path, capsys) -> None:
    flags, metric = EXAMPLES[name]
    if name == "shakespeare":
        text = tmp_path / "input.txt"
        text.write_text("To be, or not to be, that is the question. " * 40)
        flags = ["--path", str(text), *flags]
    words = [*SMALL, *flags, "--runs", tmp_path / "runs"]
    assert start(name, *words) == 0
    captured = capsys.readouterr()
    assert metric in captured.out
    assert (tmp_path / "runs" / "mine" / "model.safetensors").exists()
    assert start(name, *words) == 0
    assert "trained to its end already" in capsys.readouterr().err
    assert list((tmp_path / "runs" / "mine" / "source").iterdir())


def test_the_help_of_an_example_is_its_own(capsys) -> None:
    assert start("var_rename", "--help") == 0
    page = capsys.readouterr().out
    assert page.startswith("Usage: python -m examples.var_rename [OPTIONS]")
    assert "--names N" in page
    assert "--num-layers N" in page
    assert "--task" not in page


def test_a_fault_in_an_example_is_an_error_like_any_other(capsys) -> None:
    assert start("dag", "--nodez", "3") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix: Did you mean --nodes? `python -m examples.dag --help`")


def test_examples_are_short() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert [path.stem for path in files] == ["__init__", *sorted([*EXAMPLES, "arithmetic_chat"])]
    for path in files:
        assert len(path.read_text().splitlines()) <= 60, path


def test_sums_are_right_and_no_set_of_numbers_is_in_two_splits(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setattr(sys, "argv", ["sums", str(tmp_path / "a"), "--conversations", "2000"])
        runpy.run_module("examples.arithmetic_chat", run_name="__main__", alter_sys=True)
    homes: dict[str, str] = {}
    for split in SPLITS:
        for line in (tmp_path / "a" / f"{split}.jsonl").read_text().splitlines():
            messages = json.loads(line)["messages"]
            for asked, reply in zip(messages[::2], messages[1::2], strict=True):
                text = asked["content"].rstrip("?")
                assert eval(text) == int(reply["content"]) == int(reply["think"].split("=")[-1])
                assert all(
                    eval(s) == int(v) for s, v in (e.split("=") for e in reply["think"].split())
                )
                numbers = " ".join(sorted(re.findall(r"\d+", text)))
                assert homes.setdefault(numbers, split) == split
    assert {*homes.values()} == {*SPLITS}


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "settings").glob("*.yaml")))
def test_settings_fit_their_task(path: Path) -> None:
    config = TrainerConfig.parse(read_yaml(path), where=str(path))
    assert len(config.task.encode(config.task.example(0)).ids) <= config.model.context_length


@pytest.mark.parametrize("path", LADDERS, ids=lambda path: path.stem)
def test_a_ladder_file_is_one(path: Path) -> None:
    config = LadderConfig.read(path)
    select(config.predictor.features)
    for stage in config.stages:
        assert stage.server is not None or trainer_config(stage, path.parent).steps > 0
        if stage.launch is not None:
            Launcher(stage.launch, str(stage.server)).stop()  # the command is read, nothing starts


def test_the_four_sizes_can_be_fitted_and_run(run, tmp_path: Path) -> None:
    """As its first lines say, with few steps; they are 3 of 400, so that nothing is known."""
    original = ROOT / "examples" / "ladders" / "four-sizes.yaml"
    plain = read_yaml(original)
    for stage in plain["stages"]:
        stage["train"] = {**stage["train"], "steps": 3, "evaluation_batches": 1, "samples": 0}
    file = tmp_path / "examples" / "ladders" / original.name
    write_yaml(file, plain)
    ended = run("cascade", "fit", file, "--json")
    assert ended.code == 0
    assert {each.name for each in (tmp_path / "runs").iterdir()} == {
        f"four-sizes-{stage['name']}" for stage in plain["stages"]
    }
    said = original.read_text().splitlines()[3]
    prompt = shlex.split(said.removeprefix("#"))[-1]
    [answer] = run("cascade", "run", file, prompt, "--json").json
    assert len(answer["text"]) == 3
    assert answer["trace"]


def test_deep_labels_weigh_more(monkeypatch) -> None:
    import torch

    from stepwell.model.presets import presets
    from stepwell.tasks import VariableEvaluation
    from stepwell.train.config import TrainerConfig

    monkeypatch.syspath_prepend(str(ROOT))
    trainer_kind = importlib.import_module("examples.var_eval").DeepTrainer
    task = VariableEvaluation(statements=6)
    trainer = trainer_kind(TrainerConfig(model=presets["facts-small"], task=task, batch_size=2))
    batch = trainer.batch(0)
    logits = trainer.model(batch.ids).detach().double().log_softmax(-1)
    total = weight = 0.0
    for row, column in torch.argwhere(batch.labels >= 0).tolist():
        depth = int(batch.depths[row, column])
        total -= depth * float(logits[row, column, batch.labels[row, column]])
        weight += depth
    assert trainer.loss(batch).item() == pytest.approx(total / weight, rel=1e-5)
