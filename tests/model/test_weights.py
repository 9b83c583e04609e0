"""Loading: a directory is the model that its files describe, or an error that names the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepwell.errors import ConfigError, WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.presets import gpt2_shape
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

LLAMA = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=2, num_heads=2)
GPT2 = gpt2_shape(16, 2, 2, context_length=16).changed(vocab_size=19)
IDS = torch.arange(12).reshape(2, 6)


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


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same, in shards."""
    save_bare(made(LLAMA), tmp_path / "sharded", max_shard_bytes=4000)
    return tmp_path / "sharded"


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


def test_a_loaded_model_is_in_eval_mode_and_trainable(directory: Path) -> None:
    model = load_model(directory)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(IDS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_changes_nothing_global(directory: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(directory)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.get_default_dtype() == torch.float32


def test_dtype_on_load_converts_each_parameter(directory: Path) -> None:
    exact, model = made(LLAMA).state_dict(), load_model(directory, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, exact[name].bfloat16())


def test_without_a_wish_the_dtype_is_that_of_the_files(tmp_path: Path) -> None:
    save_bare(made(LLAMA), tmp_path, dtype="float16")
    assert load_model(tmp_path).dtype == torch.float16
    reconfigure(tmp_path, dtype=None, torch_dtype=None)
    assert load_model(tmp_path).dtype == torch.float16
    reconfigure(tmp_path, torch_dtype="float32")
    assert load_model(tmp_path).dtype == torch.float16, "dtype: null comes before torch_dtype"


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@torch.no_grad()
def test_a_mapped_model_computes_the_same_bits_as_the_saved_one(
    config: ModelConfig, tmp_path: Path
) -> None:
    model = made(config)
    save_bare(model, tmp_path)
    for mmap in (True, False):
        loaded = load_model(tmp_path, mmap=mmap)
        assert all(each.data_ptr() % 64 == 0 for each in loaded.parameters() if each.dim() == 2)
        for length in (1, 2, 6):
            assert torch.equal(loaded(IDS[:1, :length]), model(IDS[:1, :length]))


def test_writing_into_a_mapped_model_leaves_the_file_as_it_is(directory: Path) -> None:
    before = (directory / WEIGHTS).read_bytes()
    with torch.no_grad():
        for parameter in load_model(directory, mmap=True).parameters():
            parameter.zero_()
    assert (directory / WEIGHTS).read_bytes() == before


def test_unmapped_weights_do_not_follow_the_file(directory: Path) -> None:
    model, mapped = load_model(directory, mmap=False), load_model(directory, mmap=True)
    path = directory / WEIGHTS
    with path.open("r+b") as file:
        file.seek(-400, os.SEEK_END)
        file.write(b"\0" * 400)
    assert same(model, made(LLAMA))
    assert not same(mapped, made(LLAMA)), "a mapped file shows through, or this test sees nothing"


MEASURE = """
import sys, threading
from pathlib import Path
from stepwell.model.weights import load_model

def anonymous_kb():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

def watch():
    while not done.is_set():
        seen.append(anonymous_kb())

load_model(sys.argv[1])
for mmap in (True, False):
    before, seen, done = anonymous_kb(), [], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(sys.argv[2], mmap=mmap)
    done.set()
    watcher.join()
    size_kb = sum(parameter.nbytes for parameter in model.parameters()) // 1024
    print(size_kb, (max([*seen, anonymous_kb()]) - before) / size_kb)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's smaps")
def test_a_mapped_load_takes_no_memory_of_its_own(directory: Path, tmp_path: Path) -> None:
    shape = LLAMA.resized(width=512, num_layers=16, num_heads=8, vocab_size=4000)
    with torch.device("meta"):
        model = Transformer(shape)
    save_bare(model.to_empty(device="cpu"), tmp_path / "large")
    command = [sys.executable, "-c", MEASURE, str(directory), str(tmp_path / "large")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    (size_kb, mapped), (_, copied) = (
        map(float, line.split()) for line in answer.stdout.splitlines()
    )
    assert size_kb > 190_000
    assert mapped < 0.1
    assert 0.9 < copied < 1.1, "copying takes 1x memory, which this measure must show"


def test_names_without_the_prefix_are_understood(tmp_path: Path) -> None:
    for config, prefix in ((LLAMA, "model."), (GPT2, "transformer.")):
        directory = tmp_path / config.family
        save_bare(made(config), directory)

        def strip(tensors: dict[str, Tensor], prefix: str = prefix) -> None:
            for name in list(tensors):
                tensors[name.removeprefix(prefix)] = tensors.pop(name)

        rewrite(directory, strip)
        assert same(load_model(directory), made(config))


def test_tensors_that_follow_from_config_json_are_passed_over(tmp_path: Path) -> None:
    redundant = {
        LLAMA: ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
        GPT2: ["transformer.h.1.attn.bias", "h.0.attn.masked_bias"],
    }
    for config, names in redundant.items():
        directory = tmp_path / config.family
        save_bare(made(config), directory)
        rewrite(
            directory,
            lambda tensors, names=names: tensors.update(  # type: ignore[misc]
                {name: torch.ones(3) for name in names}
            ),
        )
        assert same(load_model(directory), made(config))


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(directory: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(directory, add)
    assert same(load_model(directory), made(LLAMA))
    rewrite(directory, lambda tensors: tensors["lm_head.weight"][3].add_(1))
    with pytest.raises(WeightsError, match=r"lm_head.weight differs from model.embed_tokens") as no:
        load_model(directory)
    assert "tie_word_embeddings" in no.value.fix


def test_shards_are_one_model(sharded: Path) -> None:
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 2
    assert same(load_model(sharded), made(LLAMA))


def test_a_missing_a_swapped_and_a_foreign_shard_are_seen(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    with pytest.raises(WeightsError, match=r"model-00001-of-.*safetensors (lacks|also holds)"):
        load_model(sharded)
    first.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match=r"safetensors is a Git LFS pointer"):
        load_model(sharded)
    first.unlink()
    with pytest.raises(WeightsError, match=f"names {first.name}, which does not exist"):
        load_model(sharded)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "x.bin", "", 3, None, "..safetensors"]
)
def test_an_index_cannot_lead_out_of_its_directory(sharded: Path, name: Any) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"index.json: expected a weight_map"):
        load_model(sharded)


def test_an_index_without_a_map_is_refused(sharded: Path) -> None:
    for content, message in (('{"weight_map": [1]}', "expected a weight_map"), ("{", "not valid")):
        (sharded / "model.safetensors.index.json").write_text(content)
        with pytest.raises(WeightsError, match=message):
            load_model(sharded)


def test_ignore_keys_reaches_config_json(directory: Path) -> None:
    reconfigure(directory, attention_sink=4)
    with pytest.raises(ConfigError, match="attention_sink"):
        load_model(directory)
    assert same(load_model(directory, ignore_keys=["attention_sink"]), made(LLAMA))
