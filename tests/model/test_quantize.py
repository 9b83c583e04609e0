"""8-bit weights: what they lose, and that the torch path computes what the bytes say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stepwell.errors import ConfigError, WeightsError
from stepwell.model.config import ModelConfig
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.quantize import (
    ZERO,
    QuantizedLinear,
    dequantize,
    quantize,
    quantize_weights,
)
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model
from stepwell.native.decoder import GROUP


def random_model(**changes) -> Transformer:
    values = {"vocab_size": 31, "width": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    model = Transformer(ModelConfig(**{**values, **changes}))
    model.initialize(0)
    return model.eval()


@pytest.mark.parametrize("inputs", [1, GROUP - 1, GROUP, GROUP + 5, 3 * GROUP])
def test_a_weight_is_off_by_half_a_step_of_its_group_at_most(inputs):
    weight = torch.randn(7, inputs, generator=torch.Generator().manual_seed(0)) ** 3
    stored, scale = quantize(weight)
    found = dequantize(stored, scale)
    assert stored.dtype == torch.uint8
    assert stored.shape == found.shape == (7, -(-inputs // GROUP) * GROUP)
    step = scale.repeat_interleave(GROUP, 1)[:, :inputs]
    assert ((found[:, :inputs] - weight).abs() <= step * (0.5 + 1e-5)).all()
    assert (found[:, inputs:] == 0).all()


def test_the_largest_weight_of_a_group_is_kept():
    weight = torch.zeros(2, 2 * GROUP)
    weight[0, 3], weight[1, GROUP + 1] = -2.5, 1e-4
    stored, scale = quantize(weight)
    assert dequantize(stored, scale).allclose(weight, rtol=1e-6)
    assert (stored[0, 3], stored[1, GROUP + 1]) == (ZERO - 127, ZERO + 127)


def test_one_scale_for_a_whole_row_would_break_the_bound():
    weight = torch.cat((torch.full((1, GROUP), 100.0), torch.full((1, GROUP), 0.01)), 1)
    stored, scale = quantize(weight)
    assert dequantize(stored, scale).allclose(weight, rtol=1e-6)
    whole = (weight / (100 / 127)).round() * (100 / 127)
    assert not whole.allclose(weight, rtol=0.5)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"qkv_bias": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_quantized_model_computes_with_the_weights_that_its_bytes_stand_for(changes, dtype):
    model = random_model(**changes).to(dtype)
    twin = random_model(**{**changes, "tie_embeddings": False}).to(dtype)
    twin.load_state_dict(model.state_dict() | {"head.weight": (model.head or model.embed).weight})
    for module in twin.modules():
        if isinstance(module, nn.Linear):
            found = dequantize(*quantize(module.weight))[:, : module.in_features]
            module.weight = nn.Parameter(found.to(dtype))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        plain = model(ids)
        expected = twin(ids)
        found = quantize_weights(model)(ids)
    assert found.equal(expected)
    assert not found.equal(plain)
    assert (found - plain).float().std() < 0.05 * plain.float().std()


def test_every_matrix_but_the_embedding_is_in_8_bits():
    model = quantize_weights(random_model())
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 2 * 7 + 1
    assert model.embed.weight.dtype == torch.float32


def test_8_bits_are_another_model_to_caches_and_noise():
    model = random_model()
    before = model_fingerprint(model)
    assert model_fingerprint(quantize_weights(model)) != before


def test_a_quantized_model_is_not_saved_as_if_it_were_whole(tmp_path):
    with pytest.raises(WeightsError, match="8-bit weights"):
        save_model(quantize_weights(random_model()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_is_quantized_as_it_is_loaded(tmp_path):
    model = random_model()
    save_model(model, tmp_path)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        found = load_model(tmp_path, weights="int8")(ids)
        assert found.equal(quantize_weights(model)(ids))
    assert load_model(tmp_path, weights="bf16").dtype == torch.bfloat16


def test_a_wrong_weight_format_is_named(tmp_path):
    save_model(random_model(), tmp_path)
    with pytest.raises(ConfigError, match="weights is 'int9'"):
        load_model(tmp_path, weights="int9")
    with pytest.raises(ConfigError, match="'bf16', but dtype is float32"):
        load_model(tmp_path, weights="bf16", dtype="float32")
