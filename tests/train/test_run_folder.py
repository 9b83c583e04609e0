from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from stepwell.config import read_json, read_yaml
from stepwell.errors import CheckpointError, ConfigError, FormatError, TrainingError
from stepwell.model.weights import load_model
from stepwell.storage.sealed import verify
from stepwell.text.tokenizer import Tokenizer
from stepwell.train.config import TrainerConfig
from stepwell.train.environment import git_state, own_sources
from stepwell.train.run_folder import Run, RunFolder
from stepwell.train.trainer import Trainer


def test_a_run_folder_holds_what_it_promises(small):
    config = small()
    run = Trainer(config).train()
    assert run.directory == config.directory
    assert TrainerConfig.parse(read_yaml(run.directory / "run.yaml")) == config
    described = read_json(run.directory / "environment.json")
    assert described["data"] == config.task.fingerprint
    assert described["sessions"][0]["torch"] == torch.__version__
    assert described["sessions"][0]["threads"] == 1
    assert Run.load(run.directory) == run
    assert verify(run.directory)["step"] == run.step
    assert sorted(path.name for path in run.directory.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-8",
    ]
    assert len(list(run.directory.glob("events.out.tfevents.*"))) == 1


def test_transformers_loads_a_run_folder(small):
    transformers = pytest.importorskip("transformers")
    trainer = Trainer(small())
    run = trainer.train()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.directory)
    example = trainer.task.example_in("validation", 0)
    ids = trainer.task.tokenizer.encode(example.prompt)
    assert tokenizer(example.prompt, add_special_tokens=False)["input_ids"] == ids
    ours = load_model(run.directory)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(ours(torch.tensor([ids])), expected, rtol=0, atol=1e-4)
    assert theirs.generation_config.max_new_tokens == trainer.task.max_answer_tokens


def test_the_weights_are_those_with_the_lowest_validation_loss(small):
    """The losses are given, so that the best evaluation is the second of three."""

    class Scripted(Trainer):
        losses = iter((3.0, 1.0, 2.0))
        weights: tuple[torch.Tensor, ...] = ()

        def evaluate(self, split="validation"):
            self.weights = (*self.weights, self.model.embed.weight.detach().clone())
            return {"loss": next(self.losses)}

    trainer = Scripted(small())
    run = trainer.train()
    assert (run.step, run.metrics) == (8, {"loss": 1.0})
    assert torch.equal(load_model(run.directory).embed.weight, trainer.weights[1])
    assert not torch.equal(trainer.weights[1], trainer.weights[2])
    assert Tokenizer.load(run.directory).vocab_size == trainer.model_config.vocab_size


def publish(folder: RunFolder, text: str, step: int) -> None:
    def fill(hidden: Path) -> None:
        for name in ("model.safetensors", "config.json"):
            (hidden / name).write_text(text)

    folder.publish(fill, step, {"loss": 1.0})


def test_every_prefix_of_a_publication_is_whole_or_has_no_manifest(tmp_path, disk):
    folder, snapshots = RunFolder(tmp_path / "run"), tmp_path / "snapshots"
    folder.directory.mkdir()
    publish(folder, "old", 1)
    with disk.watched(lambda number: shutil.copytree(folder.directory, snapshots / str(number))):
        publish(folder, "new", 2)
    seen = set()
    for left in snapshots.iterdir():
        if (left / "manifest.json").exists():
            seen.add(verify(left)["step"])
        publish(RunFolder(left), "again", 3)
        assert verify(left)["step"] == 3
    assert seen == {1, 2}


def test_a_full_disk_leaves_the_published_weights(tmp_path, disk):
    folder = RunFolder(tmp_path)
    publish(folder, "old", 1)
    with disk.watched():
        publish(folder, "new", 2)
    operations = list(disk.operations)
    publish(folder, "old", 1)
    while operations[-1] == "fsync":  # by then the new ones are there
        operations.pop()
    for number in range(len(operations)):
        with disk.failing_at(number), pytest.raises(CheckpointError, match="No space left"):
            publish(folder, "new", 2)
        assert Run.load(tmp_path).step == 1
        assert verify(tmp_path)
        assert not list(tmp_path.glob(".*"))


def test_two_processes_never_train_in_one_folder(tmp_path):
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(TrainingError, match="Another process"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    with RunFolder(tmp_path).locked():
        pass


def test_fresh_removes_runs_only(small):
    config = small()
    config.directory.mkdir()
    (config.directory / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no run folder"):
        Trainer(config).train(fresh=True)
    assert (config.directory / "thesis.tex").exists()


def test_a_folder_without_weights_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        Run.load(tmp_path)


def test_a_newer_run_folder_is_refused(small):
    config = small()
    Trainer(config).train()
    path = config.directory / "environment.json"
    path.write_text(json.dumps({**read_json(path), "format_version": 2}))
    with pytest.raises(FormatError, match="format_version 2"):
        Trainer(config).train()


def test_the_experiments_own_source_is_kept(small, tmp_path, monkeypatch):
    (tmp_path / "experiment.py").write_text(
        "from stepwell.train.trainer import Trainer\nclass Mine(Trainer): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import experiment

    assert own_sources(Trainer, int) == {}
    run = experiment.Mine(small()).train()
    assert [path.name for path in (run.directory / "source").iterdir()] == ["experiment.py"]
    sys.modules.pop("experiment")


def test_git_state_is_none_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_progress_sees_the_run(small):
    class Recorded:
        seen: tuple[object, ...] = ()

        def start(self, total, description):
            self.seen = (*self.seen, (total, description))

        def update(self, step, values):
            self.seen = (*self.seen, step)
            assert {"loss", "lr", "tokens_per_s"} <= set(values)

        def finish(self):
            self.seen = (*self.seen, "finished")

    progress = Recorded()
    Trainer(small()).train(progress=progress)
    assert progress.seen == ((12, "run"), 3, 6, 9, 12, "finished")
