"""What differs from its manifest is seen; what was found sound is remembered."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stepwell.errors import ConfigError, StepwellError, TokenizerError, WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model
from stepwell.storage import verified
from stepwell.storage.sealed import MANIFEST, read_manifest, seal
from stepwell.storage.verified import check_files
from stepwell.text.tokenizer import Tokenizer

CONFIG = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=2, num_heads=2)
WEIGHTS = "model.safetensors"
Hashed = list[str]


def made(seed: int = 0) -> Transformer:
    model = Transformer(CONFIG)
    model.initialize(seed)
    return model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model and its tokenizer, as they are saved here."""
    save_model(made(), tmp_path / "model")
    Tokenizer.character("abc").save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hashed:
    """The names of the files that are hashed; every file counts as large, and none is known."""
    names: Hashed = []
    sha256 = verified.sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(verified, "sha256", noted)
    monkeypatch.setattr(verified, "LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def failure(action: Callable[[], object]) -> StepwellError | None:
    """What the action raises of ours; nothing else may be raised."""
    try:
        action()
    except StepwellError as error:
        return error
    return None


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_seen(directory: Path, flips: int) -> None:
    """Every byte of the header, and so many of the body."""
    path, chosen = directory / WEIGHTS, random.Random(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    body = (chosen.randrange(header, len(whole)) for _ in range(flips))
    for position in (*range(header), *body):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(bytes([whole[position] ^ 1 << chosen.randrange(8)]))
        error = failure(lambda: load_model(directory))
        assert isinstance(error, WeightsError)
        assert str(path) in error.problem
        with path.open("r+b") as file:
            file.seek(position)
            file.write(whole[position : position + 1])
    assert failure(lambda: load_model(directory)) is None


def test_without_a_manifest_a_flip_in_the_body_is_not_seen(directory: Path) -> None:
    """Negative control, and what the documentation says of directories from elsewhere."""
    (directory / MANIFEST).unlink()
    with (directory / WEIGHTS).open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x01")
    assert failure(lambda: load_model(directory)) is None


def test_a_cut_file_and_a_missing_one_are_seen(directory: Path) -> None:
    path = directory / WEIGHTS
    whole = path.read_bytes()
    for length in range(0, len(whole), 4096):
        path.write_bytes(whole[:length])
        error = failure(lambda: load_model(directory))
        assert error is not None
        assert str(path) in error.problem
    path.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing; manifest\.json"):
        load_model(directory)


def test_a_swapped_shard_is_seen(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        save_model(made(seed), tmp_path / name, max_shard_bytes=4000)
    shards = sorted((tmp_path / "one").glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        kept = shard.read_bytes()
        shutil.copy(tmp_path / "other" / shard.name, shard)
        with pytest.raises(WeightsError, match=shard.name):
            load_model(tmp_path / "one")
        shard.write_bytes(kept)
    load_model(tmp_path / "one")


@pytest.mark.parametrize(
    "content", ["{}", "", "[1]", '{"format_version": 1, "files": {"../x": ""}}']
)
def test_a_damaged_manifest_is_an_error(directory: Path, content: str) -> None:
    (directory / MANIFEST).write_text(content)
    with pytest.raises(WeightsError, match=r"manifest\.json is missing or damaged") as caught:
        load_model(directory)
    assert "remove it" in caught.value.fix


def test_a_tokenizer_is_held_against_the_manifest_that_names_it(directory: Path) -> None:
    Tokenizer.load(directory)
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"c"', '"d"'))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(directory)


# -- changes that are meant ------------------------------------------------------------------------


def test_an_edited_file_is_told_from_a_damaged_one_by_who_edits_it(directory: Path) -> None:
    path = directory / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.5}))
    with pytest.raises(WeightsError, match=r"generation_config\.json") as caught:
        load_model(directory)
    assert f"take its name out of {MANIFEST}" in caught.value.fix
    manifest = read_manifest(directory)
    manifest["files"].pop(path.name)
    (directory / MANIFEST).write_text(json.dumps(manifest))
    load_model(directory)


def test_what_is_saved_over_a_sealed_directory_can_be_loaded(directory: Path) -> None:
    seal(directory, step=3)
    Tokenizer.character("xyz").save(directory)
    assert Tokenizer.load(directory).vocab_size == 3
    assert {"tokenizer.json", WEIGHTS} <= read_manifest(directory)["files"].keys()
    assert read_manifest(directory)["step"] == 3
    save_model(made(1), directory, max_shard_bytes=4000)
    assert torch.equal(load_model(directory).embed.weight, made(1).embed.weight)
    assert WEIGHTS not in read_manifest(directory)["files"]


def test_what_is_replaced_while_it_is_read_is_read_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, saves = verified.sha256, iter([made(1)])

    def late(path: Path) -> str:
        for model in saves:
            save_model(model, directory)
        return sha256(path)

    monkeypatch.setattr(verified, "sha256", late)
    assert torch.equal(load_model(directory).embed.weight, made(1).embed.weight)


# -- memory ----------------------------------------------------------------------------------------


def test_a_large_file_is_hashed_once_until_it_changes(directory: Path, hashed: Hashed) -> None:
    load_model(directory)
    assert WEIGHTS in hashed
    hashed.clear()
    load_model(directory)
    assert not hashed
    load_model(directory, verify="always")
    assert WEIGHTS in hashed
    hashed.clear()
    (directory / WEIGHTS).touch()
    load_model(directory)
    assert hashed == [WEIGHTS]


@pytest.mark.usefixtures("hashed")
def test_what_is_remembered_is_the_file_that_was_looked_at(directory: Path) -> None:
    """Not another one of the same name and size, nor the same one under another manifest."""
    load_model(directory)
    path = directory / WEIGHTS
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=times)
    with pytest.raises(WeightsError, match="is damaged"):
        load_model(directory)
    with pytest.raises(WeightsError, match="is damaged"):
        load_model(directory)


def test_a_home_that_cannot_be_written_to_costs_time_only(
    directory: Path, hashed: Hashed, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    for _ in range(2):
        hashed.clear()
        load_model(directory)
        assert WEIGHTS in hashed


def test_only_two_ways_of_verifying_are_known(directory: Path) -> None:
    with pytest.raises(ConfigError, match="alway"):
        load_model(directory, verify="alway")  # type: ignore[arg-type]
    check_files(directory, lambda _: False, WeightsError, "always")
