"""Model directories that are damaged, foreign or of another model: each fault is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepwell.errors import ConfigError, StepwellError, WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

LLAMA = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=2, num_heads=2)
UP = "model.layers.1.mlp.up_proj.weight"


def made(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.initialize(seed)
    return model.eval()


def save_bare(model: Transformer, directory: Path, **options: Any) -> None:
    """A model directory as other programs write it: without a manifest."""
    save_model(model, directory, **options)
    (directory / "manifest.json").unlink()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A saved Llama, in one file."""
    save_bare(made(LLAMA), tmp_path / "model")
    return tmp_path / "model"


def same(one: Transformer, other: Transformer) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a saved model by safetensors' own reader and writer."""
    tensors = {name: each.clone() for name, each in load_file(directory / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def reconfigure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WEIGHTS = "model.safetensors"


def test_a_wrong_shape_names_file_tensor_and_the_fields_behind_it(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.update({UP: torch.ones(3, 16)}))
    with pytest.raises(WeightsError) as caught:
        load_model(directory)
    assert caught.value.problem == (
        f"{directory / WEIGHTS}: {UP} is [3, 16], expected [40, 16] (mlp_width=40, width=16)."
    )


DAMAGE: Mapping[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop(UP), f"lacks {UP}."),
    "several missing": (
        lambda tensors: [tensors.pop(UP), tensors.pop("model.norm.weight")],
        f"lacks {UP} and 1 other",
    ),
    "extra": (
        lambda tensors: tensors.update(score=torch.ones(2)),
        "holds score, which this llama config",
    ),
    "bias": (
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}),
        "q_proj.bias, which this llama config",
    ),
    "untied head": (
        lambda tensors: tensors.update({"lm_head.weight": torch.ones(19, 16)}),
        "lm_head.weight differs",
    ),
    "int8": (lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)}), "is int8, expected"),
    "bool": (lambda tensors: tensors.update({UP: tensors[UP] > 0}), "is bool, expected"),
    "transposed": (
        lambda tensors: tensors.update({UP: tensors[UP].T.contiguous()}),
        "[16, 40], expected [40, 16]",
    ),
    "no layers": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers" in name],
        "holds 0 layers, config.json says 2",
    ),
    "another layer": (
        lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.weight": torch.ones(1)}),
        "holds 8 layers, config.json says 2",
    ),
    "both spellings": (
        lambda tensors: tensors.update({"norm.weight": torch.ones(16)}),
        "model.norm.weight, which this llama config",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_are_refused_by_name(directory: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    rewrite(directory, change)
    with pytest.raises(WeightsError) as caught:
        load_model(directory)
    assert message in caught.value.problem
    assert str(directory / WEIGHTS) in caught.value.problem


def test_a_missing_head_points_to_tying(tmp_path: Path) -> None:
    save_bare(made(LLAMA), tmp_path)
    reconfigure(tmp_path, tie_word_embeddings=False)
    with pytest.raises(WeightsError, match=r"lacks lm_head\.weight") as caught:
        load_model(tmp_path)
    assert '"tie_word_embeddings": true' in caught.value.fix


FOREIGN: Mapping[str, tuple[bytes, str]] = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "LFS pointer",
    ),
    "zip": (b"PK\x03\x04" + bytes(300), "PyTorch pickle"),
    "pickle": (b"\x80\x02}q\x00." + bytes(300), "PyTorch pickle"),
    "empty": (b"", "not a whole safetensors file"),
    "page": (b"<html>" + bytes(300), "not a whole safetensors file"),
    "huge header": (b"\xff" * 300, "not a whole safetensors file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_named_for_what_it_is(directory: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    (directory / WEIGHTS).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(directory)
    assert str(directory / WEIGHTS) in caught.value.problem
    assert caught.value.fix


def test_every_truncation_is_seen(directory: Path) -> None:
    path = directory / WEIGHTS
    whole = path.read_bytes()
    for length in (*range(0, 4000, 61), *range(4000, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"not a whole"):
            load_model(directory)
    path.write_bytes(whole + b"\0")
    with pytest.raises(WeightsError, match=r"not a whole"):
        load_model(directory)


def test_no_flipped_byte_of_the_header_gives_another_model(tmp_path: Path) -> None:
    """A header byte may be idle (in the metadata, or a space); it never changes a value unseen."""
    exact = made(LLAMA.changed(num_layers=1))
    save_bare(exact, tmp_path)
    path, chosen = tmp_path / WEIGHTS, random.Random(0)
    whole = path.read_bytes()
    refused = idle = 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in range(header):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_model(tmp_path)
        except WeightsError as error:
            refused += str(path) in error.problem
        else:
            assert same(found, exact), position
            idle += 1
    assert refused + idle == header
    assert refused > 0.9 * header


BAD_CONFIGS: Mapping[str, tuple[bytes, type[StepwellError], str]] = {
    "cut": (b'{"model_type": ', ConfigError, "line 1: not valid JSON"),
    "second line": (b'{\n"a": 1,}', ConfigError, "line 2: not valid JSON"),
    "list": (b"[1]", ConfigError, "expected a JSON object, got a list"),
    "binary": (b"\xff\xfe\x00", ConfigError, "not valid JSON"),
    "deep": (b"[" * 100_000, ConfigError, "not valid JSON"),
    "nan": (b'{"rope_theta": NaN}', ConfigError, "NaN is no JSON number"),
    "long number": (b'{"a": ' + b"9" * 9999 + b"}", ConfigError, "not valid JSON"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_malformed_config_is_refused_by_file_and_line(directory: Path, kind: str) -> None:
    content, error, message = BAD_CONFIGS[kind]
    (directory / "config.json").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        load_model(directory)
    assert str(directory / "config.json") in caught.value.problem


def test_a_config_of_absurd_sizes_is_refused_before_anything_is_built(directory: Path) -> None:
    for sizes in ({"num_hidden_layers": 9999}, {"hidden_size": 2**27, "head_dim": 2**27}):
        original = (directory / "config.json").read_text()
        reconfigure(directory, **sizes)
        with pytest.raises(StepwellError, match=r"holds 2 layers|describes .* parameters"):
            load_model(directory)
        (directory / "config.json").write_text(original)


def test_missing_pieces_are_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no directory .*/absent"):
        load_model(tmp_path / "absent")
    with pytest.raises(WeightsError, match="is a file, expected a model directory"):
        load_model(directory / WEIGHTS)
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"neither model.safetensors nor") as caught:
        load_model(directory)
    assert "convert pytorch_model.bin" in caught.value.fix
    (directory / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config.json does not exist"):
        load_model(directory)
