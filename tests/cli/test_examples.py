"""The examples run as they are shown, with the flags of `stepwell train`."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from stepwell.config import read_yaml
from stepwell.tasks import SPLITS
from stepwell.train.config import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--num-layers", "1", "--width", "16", "--num_heads", "2", "--batch-size", "4"),
    *("--steps", "3", "--evaluation-batches", "1", "--samples", "1", "--run-name", "mine"),
)
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
