"""PyTorch's own files: converted where they hold tensors, refused unrun where they hold more."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stepwell.errors import WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.convert import convert_pt
from stepwell.model.presets import gpt2_shape
from stepwell.model.tensor_files import read_safetensors
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

LLAMA = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=1, num_heads=2)
GPT2 = gpt2_shape(16, 1, 2, context_length=16).changed(vocab_size=19)
CONFIGS = {"llama": LLAMA, "gpt2": GPT2}


def made(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialize(seed=0)
    return model


def foreign(config: ModelConfig, directory: Path) -> dict[str, Tensor]:
    """transformers' state dict of a model, whose config.json is then in the directory."""
    save_model(made(config), directory)
    tensors = read_safetensors(directory / "model.safetensors")
    tensors = {name: each.clone() for name, each in tensors.items()}
    (directory / "model.safetensors").unlink()
    return tensors


def same(one: Transformer, other: Transformer) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


def embedding(tensors: Mapping[str, Tensor]) -> Tensor:
    return next(tensors[name] for name in tensors if "embed_tokens" in name or "wte" in name)


WRAPPINGS: Mapping[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda tensors: tensors,
    "ordered": OrderedDict,
    "model": lambda tensors: {"model": tensors, "step": 3, "args": {"lr": 0.1}},
    "state_dict": lambda tensors: {"epoch": 1, "state_dict": tensors},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors, "loss": [0.5]},
    "parallel": lambda tensors: {f"module.{name}": each for name, each in tensors.items()},
    "compiled": lambda tensors: {
        "model": {f"module._orig_mod.{name}": each for name, each in tensors.items()}
    },
    "tied head": lambda tensors: {**tensors, "lm_head.weight": embedding(tensors)},
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_state_dict_becomes_the_same_model(family: str, wrapping: str, tmp_path: Path) -> None:
    tensors = foreign(CONFIGS[family], tmp_path)
    torch.save(WRAPPINGS[wrapping](tensors), tmp_path / "source.pt")
    convert_pt(tmp_path / "source.pt", tmp_path, tmp_path / "out")
    assert same(load_model(tmp_path / "out"), made(CONFIGS[family]))


def test_files_of_the_old_format_are_read(tmp_path: Path) -> None:
    tensors = foreign(LLAMA, tmp_path)
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    convert_pt(tmp_path / "old.bin", tmp_path / "config.json", tmp_path / "out")
    assert same(load_model(tmp_path / "out"), made(LLAMA))


def test_tokenizer_and_generation_info_come_along(tmp_path: Path) -> None:
    tensors = foreign(GPT2, tmp_path / "shape")
    (tmp_path / "source").mkdir()
    torch.save(tensors, tmp_path / "source" / "model.pt")
    (tmp_path / "source" / "vocab.json").write_text("from the source")
    (tmp_path / "shape" / "vocab.json").write_text("from beside config.json")
    (tmp_path / "source" / "merges.txt").write_text("a b")
    (tmp_path / "source" / "generation_info.json").write_text("{}")
    (tmp_path / "source" / "notes.txt").write_text("no part of a model")
    convert_pt(tmp_path / "source" / "model.pt", tmp_path / "shape", tmp_path / "out")
    found = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert found["vocab.json"].read_text() == "from beside config.json"
    assert found["merges.txt"].read_text() == "a b"
    assert "generation_info.json" in found
    assert "notes.txt" not in found


class Touch:
    """A pickle that, where it is loaded as one, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_malicious_file_is_refused_and_runs_nothing(form: str, tmp_path: Path) -> None:
    tensors = foreign(LLAMA, tmp_path)
    payload = {"model": tensors, "optimizer": Touch(tmp_path / "owned")}
    path = tmp_path / "evil.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match="none of it was run") as caught:
        convert_pt(path, tmp_path, tmp_path / "out")
    assert str(path) in caught.value.problem
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(
            path.read_bytes()
        )
    assert (tmp_path / "owned").exists(), "the payload must work where it is let"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "is of type list, expected names and tensors"),
        ({"a": torch.ones(2), "epoch": 3}, "holds 'epoch': int, expected names"),
        ({3: torch.ones(2)}, "holds 3: Tensor, expected names"),
        ({"model": {"a": "text"}}, "holds 'a': str"),
        ({"a": torch.ones(2)}, "holds 0 layers"),
        ({}, "holds 0 layers"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    foreign(LLAMA, tmp_path)
    torch.save(content, tmp_path / "source.pt")
    with pytest.raises(WeightsError, match=message):
        convert_pt(tmp_path / "source.pt", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_typed_errors(zipped: bool, tmp_path: Path) -> None:
    tensors = foreign(LLAMA, tmp_path)
    path, chosen = tmp_path / "source.pt", random.Random(0)
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for _ in range(80):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chosen.randrange(len(whole))] = chosen.randrange(256)
        if chosen.random() < 0.4:
            damaged = damaged[: chosen.randrange(len(whole))]
        path.write_bytes(damaged)
        try:
            convert_pt(path, tmp_path, tmp_path / "out")
        except WeightsError as error:
            refused += str(path) in error.problem
    assert refused > 25


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    foreign(LLAMA, tmp_path)
    with pytest.raises(WeightsError, match=r"nothing\.pt does not exist"):
        convert_pt(tmp_path / "nothing.pt", tmp_path, tmp_path / "out")
