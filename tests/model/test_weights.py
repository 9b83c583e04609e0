"""Loading: a directory is the model that its files describe, or an error that names the file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepwell.errors import ConfigError, StepwellError, WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.presets import gpt2_shape
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

LLAMA = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=2, num_heads=2)
UNTIED = LLAMA.changed(tie_embeddings=False)
GPT2 = gpt2_shape(16, 2, 2, context_length=16).changed(vocab_size=19)
IDS = torch.arange(12).reshape(2, 6)
UP = "model.layers.1.mlp.up_proj.weight"


def made(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.initialize(seed)
    return model.eval()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A saved Llama, in one file."""
    save_model(made(LLAMA), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same, in shards."""
    save_model(made(LLAMA), tmp_path / "sharded", max_shard_bytes=4000)
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
    save_model(made(LLAMA), tmp_path, dtype="float16")
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
    save_model(model, tmp_path)
    for mmap in (True, False):
        loaded = load_model(tmp_path, mmap=mmap)
        assert all(each.data_ptr() % 64 == 0 for each in loaded.parameters() if each.dim() == 2)
        for length in (1, 2, 6):
            assert torch.equal(loaded(IDS[:1, :length]), model(IDS[:1, :length]))


def test_writing_into_a_mapped_model_leaves_the_file_as_it_is(directory: Path) -> None:
    before = (directory / WEIGHTS).read_bytes()
    with torch.no_grad():
        for parameter in load_model(directory).parameters():
            parameter.zero_()
    assert (directory / WEIGHTS).read_bytes() == before


def test_unmapped_weights_do_not_follow_the_file(directory: Path) -> None:
    model, mapped = load_model(directory, mmap=False), load_model(directory)
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
    save_model(model.to_empty(device="cpu"), tmp_path / "large")
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
        save_model(made(config), directory)

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
        save_model(made(config), directory)
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
    save_model(made(LLAMA), tmp_path)
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
    save_model(exact, tmp_path)
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
