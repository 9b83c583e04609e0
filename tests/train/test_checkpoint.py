from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from stepwell.errors import CheckpointError, FormatError
from stepwell.model.weights import load_model
from stepwell.storage import sealed
from stepwell.text.tokenizer import Tokenizer
from stepwell.train import checkpoint
from stepwell.train.checkpoint import (
    STATE,
    TrainerState,
    as_text,
    checkpoint_path,
    checkpoints,
    newest,
    prune,
    random_states,
    read_optimizer,
    read_state,
    restore_random_states,
    write_model,
    write_state,
)
from stepwell.train.trainer import Trainer


@pytest.fixture
def trainer(small) -> Trainer:
    made = Trainer(small())
    for step in range(2):
        made.update(step, made.gradients(made.batch(step)))
    return made


def state_at(step: int) -> TrainerState:
    return TrainerState(
        step=step,
        tokens=step * 56,
        seconds=1.0,
        losses=(0.1, None),
        metrics_bytes=0,
        random={"cpu": as_text(random_states(torch.device("cpu"))["cpu"])},
        threads=1,
        run="run",
    )


def save(run, trainer: Trainer, step: int) -> None:
    def fill(hidden) -> None:
        write_model(hidden, trainer.model, trainer.task)
        write_state(hidden, state_at(step), trainer.model, trainer.optimizer)

    sealed.commit(checkpoint_path(run, step), fill)


def hidden_names(run) -> list[str]:
    return [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_is_a_model_directory_and_the_whole_state_of_training(
    tmp_path, trainer, small
):
    save(tmp_path, trainer, 2)
    path = newest(tmp_path)
    loaded = load_model(path)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert Tokenizer.load(path).fingerprint == trainer.task.tokenizer.fingerprint
    assert read_state(path) == state_at(2)
    other = Trainer(small())
    read_optimizer(path, other.model, other.optimizer)
    expected = trainer.optimizer.state_dict()["state"]
    for number, values in other.optimizer.state_dict()["state"].items():
        assert set(values) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(values[key], expected[number][key]) for key in values)


def test_generators_draw_the_same_after_their_states_are_restored():
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.rand(7)
        text = {"cpu": as_text(random_states(cpu)["cpu"])}
        expected = torch.rand(5)
        restore_random_states(text, cpu)
        assert torch.equal(torch.rand(5), expected)


def test_every_prefix_of_a_save_leaves_the_newest_committed_checkpoint(tmp_path, trainer, disk):
    """The state of the disk before each operation is what a kill there leaves behind; the file that
    was being written may be torn at any byte as well."""
    run, snapshots = tmp_path / "run", tmp_path / "snapshots"
    run.mkdir()
    save(run, trainer, 2)
    with disk.watched(lambda number: shutil.copytree(run, snapshots / str(number))):
        save(run, trainer, 4)
    committing = last_rename(disk)
    assert {"open", "write", "fsync", "replace", "rename", "mkdir"} <= set(disk.operations)
    for number in range(len(disk.operations)):
        left = snapshots / str(number)
        for torn in (path for path in left.glob(".*/*") if path.is_file()):
            torn.write_bytes(torn.read_bytes()[: number % 50])
        assert newest(left) == checkpoint_path(left, 4 if number > committing else 2)


def test_every_file_is_flushed_before_the_rename_that_commits_it(tmp_path, trainer, monkeypatch):
    flushed, seen = set(), {}
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))

    def renamed(source, target, **options):
        if Path(target).name == "checkpoint-2":
            files = [Path(source), *Path(source).iterdir()]
            seen.update({path.name: path.stat().st_ino in flushed for path in files})
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", renamed)
    save(tmp_path, trainer, 2)
    assert len(seen) == 9
    assert all(seen.values()), seen
    assert tmp_path.stat().st_ino in flushed


def last_rename(disk) -> int:
    return len(disk.operations) - 1 - disk.operations[::-1].index("rename")


def test_a_save_in_place_fails_that_law(tmp_path, trainer, disk):
    """Negative control: without the rename, a half-written checkpoint stands among the others."""
    target = checkpoint_path(tmp_path, 4)
    target.mkdir()
    broken = []

    def is_whole(path: Path) -> bool:
        sealed_by = path / sealed.MANIFEST
        return sealed_by.exists() and STATE in sealed.read_manifest(path)["files"]

    def look(number: int) -> None:
        broken.append(not all(map(is_whole, checkpoints(tmp_path))))

    with disk.watched(look):
        write_model(target, trainer.model, trainer.task)
    assert all(broken)
    assert broken


def test_a_full_disk_loses_nothing(tmp_path, trainer, disk):
    save(tmp_path, trainer, 2)
    with disk.watched():
        save(tmp_path, trainer, 3)
    committing = last_rename(disk)
    assert committing > 20
    for number in range(committing + 1):
        shutil.rmtree(checkpoint_path(tmp_path, 3), ignore_errors=True)
        with (
            disk.failing_at(number),
            pytest.raises(
                CheckpointError, match=r"could not be written: .*No space left"
            ) as caught,
        ):
            save(tmp_path, trainer, 3)
        assert "make room" in str(caught.value)
        assert hidden_names(tmp_path) == []
        assert newest(tmp_path) == checkpoint_path(tmp_path, 2)
    save(tmp_path, trainer, 3)
    assert newest(tmp_path) == checkpoint_path(tmp_path, 3)


def test_damage_is_seen_named_and_passed_over(tmp_path, trainer, caplog):
    """A flipped bit, a cut or a missing file anywhere: never a crash, never a silent load."""
    save(tmp_path, trainer, 2)
    save(tmp_path, trainer, 4)
    source = random.Random(0)
    path = checkpoint_path(tmp_path, 4)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        flips = [source.randrange(len(whole)) for _ in range(20)]
        damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in flips]
        for content in (*damaged, whole[:-1], b"", whole + b" ", None):
            file.unlink() if content is None else file.write_bytes(content)
            if content is not None and file.name == sealed.MANIFEST and harmless(content, whole):
                continue
            with pytest.raises((CheckpointError, FormatError)) as caught:
                sealed.verify(path)
            assert file.name in str(caught.value) or file.name == sealed.MANIFEST
            file.write_bytes(whole)
        file.write_bytes(whole)
    (path / "model.safetensors").write_bytes(b"")
    caplog.clear()
    assert newest(tmp_path) == checkpoint_path(tmp_path, 2)
    assert "checkpoint-4 passed over" in caplog.text
    assert "model.safetensors is damaged" in caplog.text


def harmless(content: bytes, whole: bytes) -> bool:
    """Whether a damaged manifest still says the same."""
    try:
        return bool(json.loads(content) == json.loads(whole))
    except ValueError:
        return False


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(tmp_path, trainer):
    for step in (2, 4):
        save(tmp_path, trainer, step)
        (checkpoint_path(tmp_path, step) / "trainer.json").unlink()
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        newest(tmp_path)
    assert newest(tmp_path / "nowhere") is None


def test_a_newer_format_is_refused_not_passed_over(tmp_path, trainer):
    save(tmp_path, trainer, 2)
    path = checkpoint_path(tmp_path, 2) / sealed.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format_version": sealed.FORMAT_VERSION + 1}))
    with pytest.raises(FormatError, match="install a newer stepwell"):
        newest(tmp_path)


def test_a_manifest_cannot_lead_out_of_its_directory(tmp_path, trainer):
    save(tmp_path, trainer, 2)
    path = checkpoint_path(tmp_path, 2)
    manifest = json.loads((path / sealed.MANIFEST).read_text())
    manifest["files"]["../outside"] = "0" * 64
    (path / sealed.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        sealed.verify(path)


def test_an_optimizer_of_another_model_is_refused(tmp_path, trainer, small):
    untied = Trainer(small(model=trainer.config.model.changed(tie_embeddings=False)))
    untied.update(0, untied.gradients(untied.batch(0)))
    save(tmp_path, untied, 2)
    other = Trainer(small())
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        read_optimizer(checkpoint_path(tmp_path, 2), other.model, other.optimizer)


def test_the_newest_checkpoints_stay(tmp_path, trainer):
    for step in (2, 10, 9, 100):
        save(tmp_path, trainer, step)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-100",
        "checkpoint-10",
        "checkpoint-9",
        "checkpoint-2",
    ]
    prune(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10"]


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path, trainer):
    save(tmp_path, trainer, 2)
    assert {path.suffix for path in checkpoint_path(tmp_path, 2).iterdir()} == {
        ".json",
        ".safetensors",
    }
    assert checkpoint.OPTIMIZER == "optimizer.safetensors"
