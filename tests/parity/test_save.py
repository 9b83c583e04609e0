"""What we save, transformers loads as the same model; what it saves in shards, we load."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from stepwell.model.presets import presets
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

SHARD_BYTES = 20_000
NOT_ARITHMETIC = {
    *("_name_or_path", "architectures", "dtype", "transformers_version"),
    "max_window_layers",  # layer_types, which transformers derives from it, is compared
}


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What transformers' loggers say during the test, also what they say only once."""
    once = logging.Logger.warning_once  # type: ignore[attr-defined]
    assert isinstance(once, functools._lru_cache_wrapper)
    once.cache_clear()
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def load_foreign(directory: Path) -> PreTrainedModel:
    """transformers' model of a directory, which must need and leave nothing."""
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert {key: value for key, value in report.items() if value} == {}
    return model.eval()


def repeats(ours: Any, theirs: Any) -> bool:
    """Whether ours says all that theirs says; null says nothing."""
    if not isinstance(theirs, dict):
        return theirs is None or bool(ours == theirs)
    return all(key in NOT_ARITHMETIC or repeats(ours[key], value) for key, value in theirs.items())


@torch.no_grad()
def test_transformers_loads_what_we_save_as_the_same_model(
    foreign: PreTrainedModel, ids: Tensor, tmp_path: Path, warned: list[str]
) -> None:
    foreign.save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    back = load_foreign(tmp_path / "ours")
    assert repeats(back.config.to_dict(), foreign.config.to_dict())
    assert back.state_dict().keys() == foreign.state_dict().keys()
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, foreign.state_dict()[name]), name
    assert torch.equal(back(ids).logits, foreign(ids).logits)
    assert warned == []


def test_parameters_come_back_bit_for_bit(foreign: PreTrainedModel, tmp_path: Path) -> None:
    foreign.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    for number, shard_bytes in enumerate((5 * 2**30, SHARD_BYTES, 1)):
        directory = tmp_path / str(number)
        save_model(model, directory, max_shard_bytes=shard_bytes)
        back = load_model(directory)
        assert back.config == model.config
        assert all(map(torch.equal, back.state_dict().values(), model.state_dict().values()))


@torch.no_grad()
def test_shards_are_read_both_ways(foreign: PreTrainedModel, ids: Tensor, tmp_path: Path) -> None:
    foreign.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD_BYTES)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = load_model(tmp_path / "theirs")
    save_model(model, tmp_path / "ours", max_shard_bytes=SHARD_BYTES)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert torch.equal(load_foreign(tmp_path / "ours")(ids).logits, foreign(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_loads_a_model_that_we_initialized(
    dtype: str, ids: Tensor, tmp_path: Path
) -> None:
    model = Transformer(presets["tiny"])
    model.initialize(seed=0)
    save_model(model, tmp_path, dtype=dtype)
    back = load_foreign(tmp_path)
    assert back.dtype == getattr(torch, dtype)
    difference = (back(ids).logits - load_model(tmp_path)(ids)).abs().max()
    assert difference < {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.01}[dtype]


def test_older_and_newer_words_say_the_same(foreign: PreTrainedModel, tmp_path: Path) -> None:
    foreign.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    save_model(model, tmp_path)
    (tmp_path / "manifest.json").unlink()  # what changes below is meant
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    newer, older = {"dtype", "rope_parameters"}, {"torch_dtype", "rope_theta", "rope_scaling"}
    for dropped in (newer, older):
        path.write_text(json.dumps({k: v for k, v in values.items() if k not in dropped}))
        assert load_model(tmp_path).config == model.config
        theirs = AutoConfig.from_pretrained(tmp_path)
        assert repeats(theirs.to_dict(), foreign.config.to_dict())
        assert theirs.dtype == torch.float32


def test_special_ids_reach_generation_config(tmp_path: Path) -> None:
    config = presets["tiny"].changed(bos_id=3, eos_id=(4, 5), pad_id=6)
    model = Transformer(config)
    model.initialize(seed=0)
    save_model(model, tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (3, [4, 5], 6)
    assert load_model(tmp_path).config == config
