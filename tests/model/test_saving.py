"""Saving: all of a model or nothing of it, whatever fails and whenever."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from stepwell.errors import ConfigError, StepwellError, WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model
from stepwell.storage import staging

SMALL = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=1, num_heads=2)
DEEPER = SMALL.changed(num_layers=2)
SHARDS = 8000


def made(seed: int, config: ModelConfig = SMALL) -> Transformer:
    model = Transformer(config)
    model.initialize(seed)
    return model


def same(one: Transformer, other: Transformer) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def failure(action: Callable[[], object]) -> WeightsError | None:
    """The typed error of an action, or None where it succeeds."""
    try:
        action()
    except WeightsError as error:
        return error
    return None


class Killed(BaseException):
    """Stands for the end of the process: nothing after it may run."""


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    failing = Failing(monkeypatch)
    yield failing
    failing.after = None


class Failing:
    """Makes the nth flush, rename or new directory of a save fail, or kill the process there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after: int | None = None
        self.error: BaseException = OSError(28, "No space left on device")
        self.count = 0
        self.killed = False
        clear = staging._clear
        monkeypatch.setattr(staging, "_clear", lambda *a: None if self.killed else clear(*a))
        monkeypatch.setattr(os, "fsync", self._wrapped(lambda descriptor: None))
        for name in ("replace", "rename", "mkdir"):
            monkeypatch.setattr(Path, name, self._wrapped(getattr(Path, name)))

    def _wrapped(self, operation: object) -> object:
        def counted(*arguments: object, **options: object) -> object:
            if self.after is not None and self.count == self.after:
                self.after = None
                self.killed = isinstance(self.error, Killed)
                raise self.error
            self.count += 1
            return operation(*arguments, **options)  # type: ignore[operator]

        return counted

    def arm(self, after: int, error: BaseException | None = None) -> None:
        self.after, self.count, self.killed = after, 0, False
        self.error = error or OSError(28, "No space left on device")


REPLACEMENTS = {
    "other weights": (SMALL, SMALL, None, None),
    "other weights in shards": (SMALL, SMALL, SHARDS, SHARDS),
    "shards for one file": (SMALL, SMALL, None, SHARDS),
    "one file for shards": (SMALL, DEEPER, SHARDS, None),
    "fewer shards": (DEEPER, SMALL, SHARDS, SHARDS),
}
replacements = pytest.mark.parametrize("case", REPLACEMENTS)


def save(model: Transformer, directory: Path, shard_bytes: int | None) -> None:
    save_model(model, directory, max_shard_bytes=shard_bytes or 5 * 2**30)


@replacements
def test_a_save_replaces_the_model_and_keeps_the_other_files(case: str, tmp_path: Path) -> None:
    old, new, old_shards, new_shards = REPLACEMENTS[case]
    save(made(0, old), tmp_path, old_shards)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_text("theirs")
    save(made(1, new), tmp_path, new_shards)
    fresh = tmp_path / "fresh"
    save(made(1, new), fresh, new_shards)
    expected = {"tokenizer.json": b"{}", "checkpoint-5/model.safetensors": b"theirs"}
    fresh_files = files(fresh)
    assert files(tmp_path) == {
        **expected,
        **fresh_files,
        **{f"fresh/{name}": content for name, content in fresh_files.items()},
    }


@replacements
def test_a_save_that_fails_anywhere_changes_nothing(
    case: str, tmp_path: Path, fail_at: Failing
) -> None:
    old, new, old_shards, new_shards = REPLACEMENTS[case]
    directory = tmp_path / "model"
    save(made(0, old), directory, old_shards)
    before = files(directory)
    for step in range(100):
        fail_at.arm(step)
        error = failure(partial(save, made(1, new), directory, new_shards))
        if error is None:
            break
        assert "No space left on device" in error.problem
        assert files(directory) == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert step > 4
    assert same(load_model(directory), made(1, new))


def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path, fail_at: Failing) -> None:
    for step in range(100):
        fail_at.arm(step)
        if failure(partial(save_model, made(0), tmp_path / "deep" / "model")) is None:
            break
        assert files(tmp_path) == {}
        assert not (tmp_path / "deep" / "model").exists()
    assert step > 3


@replacements
def test_a_kill_anywhere_leaves_the_old_model_the_new_one_or_a_clear_error(
    case: str, tmp_path: Path, fail_at: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, old_shards, new_shards = REPLACEMENTS[case]
    outcomes = set()
    for step in range(100):
        directory = tmp_path / str(step)
        save(made(0, old), directory, old_shards)
        fail_at.arm(step, Killed())
        try:
            save(made(1, new), directory, new_shards)
            break
        except Killed:
            fail_at.killed = False
        error = failure(partial(load_model, directory))
        seen = error is not None
        outcomes.add("seen" if seen else "whole")
        if error is not None:
            assert "a save was killed while it replaced the model" in error.problem
        # The next save first puts the old model back, so that even its failure loses nothing.
        with monkeypatch.context() as full_disk:
            full_disk.setattr(os, "fsync", refuse)
            assert failure(partial(save_model, made(3), directory)) is not None
        found = load_model(directory)
        assert same(found, made(0, old)) or (not seen and same(found, made(1, new)))
        save(made(2, new), directory, new_shards)
        assert same(load_model(directory), made(2, new))
        assert not list(directory.glob(".*"))
    assert outcomes == {"whole", "seen"}


def refuse(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


FULL = """
import resource, sys
from stepwell.model.weights import load_model, save_model
model = load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
save_model(model, sys.argv[2])
"""


def test_a_disk_that_takes_no_more_is_a_typed_error(tmp_path: Path) -> None:
    save_model(made(0), tmp_path / "model")
    command = [sys.executable, "-c", FULL, str(tmp_path / "model"), str(tmp_path / "other")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert "WeightsError" in answer.stderr
    assert "File too large" in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_inexpressible_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qk_norm"):
        save_model(made(0, SMALL.changed(qk_norm=True)), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_parameters_without_a_name_are_not_dropped(tmp_path: Path) -> None:
    model = made(0)
    model.blocks[0].register_parameter("lora_a", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(WeightsError, match=r"no name for blocks.0.lora_a"):
        save_model(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_can_be_saved_over_the_files_that_it_is_mapped_from(tmp_path: Path) -> None:
    save_model(made(0), tmp_path)
    model = load_model(tmp_path)
    with torch.no_grad():
        model.embed.weight.mul_(2)
    save_model(model, tmp_path)
    assert same(load_model(tmp_path), model)
    assert not same(model, made(0))


def test_the_files_are_those_that_other_tools_expect(tmp_path: Path) -> None:
    save_model(made(0), tmp_path)
    assert set(files(tmp_path)) == {
        *("config.json", "generation_config.json", "manifest.json", "model.safetensors"),
    }
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o644}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_the_index_sums_what_the_shards_hold(tmp_path: Path) -> None:
    save_model(made(0), tmp_path, max_shard_bytes=SHARDS // 2, dtype="bfloat16")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * SMALL.num_parameters
    assert set(index["weight_map"].values()) == {p.name for p in tmp_path.glob("model-*")}
    for path in tmp_path.glob("model-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors) <= SHARDS // 2


def test_generation_settings_of_the_directory_stay_and_its_ids_follow_the_model(
    tmp_path: Path,
) -> None:
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.7, "eos_token_id": 9, "pad_token_id": 8}'
    )
    save_model(made(0, SMALL.changed(eos_id=5)), tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {"eos_token_id": 5, "temperature": 0.7}
    (tmp_path / "generation_config.json").write_text("{broken")
    save_model(made(0), tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {}


def test_a_file_in_the_way_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StepwellError, match="could not be written"):
        save_model(made(0), tmp_path / "taken")
    assert files(tmp_path) == {"taken": b"mine"}
