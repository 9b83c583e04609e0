"""Memory while matrices are rounded: a model is never there twice, as stored and rounded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from stepwell.errors import WeightsError
from stepwell.evals.bench.peak_memory import RESET, STATUS
from stepwell.model.config import ModelConfig
from stepwell.model.directory import open_checkpoint
from stepwell.model.memory import WeightMemory
from stepwell.model.quantize import QuantizedLinear, Rounding, quantize_weights
from stepwell.model.transformer import Transformer
from stepwell.model.weights import assemble, load_model, save_model

SHAPE = ModelConfig(
    vocab_size=8192, context_length=64, width=1024, num_layers=6, num_heads=16, mlp_width=4096
)
SMALL = ModelConfig(vocab_size=31, context_length=16, width=16, num_layers=3, num_heads=2)

PEAK = """
import json, sys
from pathlib import Path
from stepwell.evals.bench import peak_memory
directory, weights, late = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "late"
if late:  # first the whole model, then its other form
    from stepwell.model.quantize import quantize_weights
    load = peak_memory.loaded
    def late(directory, weights):
        model = load(directory, "bf16")
        kept = list(model.modules())
        return quantize_weights(model, weights)
    peak_memory.loaded = late
print(peak_memory.peak_of_loading(directory, weights))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 218 MB in bfloat16."""
    directory = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        model = Transformer(SHAPE)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    save_model(model, directory)
    return directory


def peak(directory: Path, weights: str, when: str) -> float:
    """The most memory that loading and one token take, as a share of the file."""
    size = (directory / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", PEAK, str(directory), weights, when]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout) / size


@pytest.mark.slow
@pytest.mark.skipif(not (STATUS.exists() and RESET.exists()), reason="measures on Linux only")
@pytest.mark.parametrize(("weights", "most"), [("int8", 0.8), ("int4", 0.8)])
def test_loading_takes_no_more_than_what_is_kept_and_a_layer(
    large: Path, weights: str, most: float
) -> None:
    if weights == "int4" and find_spec("bitsandbytes") is None:
        pytest.skip("the extra 'quantization' is not installed")
    assert peak(large, weights, "one by one") < most
    assert peak(large, weights, "late") > 1.2


def test_each_matrix_is_let_go_before_the_next_but_one_is_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Transformer(SMALL)
    model.initialize(0)
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    put = Rounding.put

    def watched(
        self: Rounding, model: Transformer, name: str, weight: torch.Tensor, memory: WeightMemory
    ) -> None:
        put(self, model, name, weight, memory)
        seen.append(weakref.ref(weight))
        alive.append(sum(reference() is not None for reference in seen))

    monkeypatch.setattr(Rounding, "put", watched)
    kept = list(model.modules())
    quantize_weights(model)
    assert max(alive) > 20  # what is held elsewhere is not let go, and that is seen
    del kept, model
    model = Transformer(SMALL)
    seen.clear()
    alive.clear()
    quantize_weights(model)
    assert len(alive) == 3 * 7 + 1
    assert max(alive) <= 2


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}], ids=str)
@pytest.mark.parametrize("shard_bytes", [2**30, 4000])
@pytest.mark.parametrize("mmap", [True, False])
def test_rounding_while_reading_gives_what_rounding_after_it_does(
    tmp_path: Path, changes: dict[str, bool], shard_bytes: int, mmap: bool
) -> None:
    model = Transformer(SMALL.changed(qkv_bias=True, family="qwen2", **changes))
    model.initialize(0)
    save_model(model, tmp_path, max_shard_bytes=shard_bytes)
    found = load_model(tmp_path, weights="int8", mmap=mmap).state_dict()
    expected = quantize_weights(load_model(tmp_path)).state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_file_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        model = Transformer(SMALL)
        model.initialize(seed)
        save_model(model, tmp_path / name)
    opened = open_checkpoint(tmp_path / "one")
    options = {"dtype": None, "device": torch.device("cpu"), "mmap": True}
    rounding = Rounding(QuantizedLinear, head=True)
    assemble(SMALL, opened, rounding=rounding, **options)
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "one/model.safetensors")
    with pytest.raises(WeightsError, match="replaced while it was read"):
        assemble(SMALL, opened, rounding=rounding, **options)
    assemble(SMALL, opened, **options)
