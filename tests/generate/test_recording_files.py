"""Recordings on disk come back bit for bit, and what is no recording says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from stepwell.errors import DataError, UsageError
from stepwell.generate.record import record
from stepwell.generate.recording_files import (
    FORMAT_VERSION,
    read_index,
    read_recording,
    write_recording,
)
from stepwell.generate.tape import Record
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import POINTS
from stepwell.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=31, context_length=32, width=24, num_layers=2, num_heads=4)
PROMPTS = [[3, 1, 4, 1, 5], [6, 5], [3, 5, 8]]


@pytest.fixture(scope="module")
def seen():
    model = Transformer(CONFIG)
    model.initialize(0)
    return record(model, PROMPTS, Record(points=POINTS, positions=[-1, 0]))


def test_a_safetensors_file_comes_back_bit_for_bit(seen, tmp_path):
    again = read_recording(write_recording(seen, tmp_path / "seen.safetensors"))
    assert (again.lengths, again.positions) == (seen.lengths, seen.positions)
    assert list(again) == list(seen)
    for row in range(3):
        for key, value in seen.row(row).items():
            assert torch.equal(again.row(row)[key], value)


def test_a_folder_holds_an_array_for_each_value(seen, tmp_path):
    write_recording(seen, tmp_path / "seen")
    index = read_index(tmp_path / "seen")
    assert index["lengths"] == [5, 2, 3]
    assert index["positions"] == [[4, 0], [1, 0], [2, 0]]
    for (point, layer), value in seen.items():
        kept = np.load(tmp_path / "seen" / f"{point}.{layer}.npy")
        assert np.array_equal(kept, value.numpy())


def test_a_single_value_is_one_array(seen, tmp_path):
    model = Transformer(CONFIG)
    model.initialize(0)
    one = record(model, PROMPTS, Record(points=("mlp.output",), layers=(1,)))
    kept = np.load(write_recording(one, tmp_path / "seen.npy"))
    assert np.array_equal(kept, one["mlp.output", 1].numpy())
    with pytest.raises(UsageError, match="holds one value, but there are 13"):
        write_recording(seen, tmp_path / "more.npy")
    assert not (tmp_path / "more.npy").exists()


def test_another_suffix_is_refused(seen, tmp_path):
    with pytest.raises(UsageError, match=r"expected \.safetensors, \.npy, or a folder"):
        write_recording(seen, tmp_path / "seen.pt")


def test_what_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "seen.safetensors"
    with pytest.raises(DataError, match="does not exist"):
        read_recording(path)
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="is no recording"):
        read_recording(path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(DataError, match="holds no recording of stepwell"):
        read_recording(path)
    newer = {"stepwell": json.dumps({"format_version": FORMAT_VERSION + 1})}
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, newer))
    with pytest.raises(DataError, match="this version reads up to"):
        read_recording(path)
