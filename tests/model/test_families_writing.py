"""Configurations that are written as a family's config.json, and read again."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from stepwell.errors import ConfigError
from stepwell.model.config import Family, ModelConfig, RopeScaling
from stepwell.model.config_json import read_config, write_config
from stepwell.model.families import FAMILIES
from stepwell.model.names import stored_tensors
from stepwell.model.presets import presets
from stepwell.model.transformer import Transformer

FAMILY_NAMES: tuple[Family, ...] = get_args(Family)


@pytest.mark.parametrize("name", presets)
def test_presets_survive_writing(name: str) -> None:
    values = json.loads(json.dumps(write_config(presets[name], "float32")))
    assert read_config(values) == presets[name]
    assert AutoConfig.for_model(**values).vocab_size == presets[name].vocab_size


@pytest.mark.parametrize(
    ("changes", "message", "fix"),
    [
        ({"qk_norm": True}, "qk_norm=True", "family='qwen3'"),
        ({"qkv_bias": True}, "output_bias=False", "family='qwen2'"),
        ({"sliding_window": 4, "sliding_layers": (0, 1)}, "sliding_window=4", "family='mistral'"),
        ({"sliding_window": 4, "sliding_layers": (1,)}, "sliding_window=4", "no family"),
        ({"norm": "layer"}, "norm='layer'", "change norm: no family"),
        ({"scale_attention": False}, "scale_attention=False", "no family"),
    ],
)
def test_what_a_family_cannot_express_is_refused_on_writing(
    changes: dict[str, Any], message: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        write_config(presets["tiny"].changed(**changes), "float32")
    assert message in caught.value.problem
    assert fix in caught.value.fix


def test_unused_fields_of_a_rope_scaling_do_not_hinder_writing() -> None:
    scaling = RopeScaling(kind="linear", factor=2.0, original_context_length=64)
    values = write_config(presets["tiny"].changed(rope_scaling=scaling), "float32")
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@st.composite
def expressible(draw: st.DrawFn) -> ModelConfig:
    """A ModelConfig that its family's config.json has words for."""
    family: Family = draw(st.sampled_from(FAMILY_NAMES))
    heads, head_dim = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([2, 6]))
    layers = draw(st.integers(1, 4))
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": draw(st.integers(1, 99)),
        "context_length": draw(st.integers(1, 99)),
        "num_layers": layers,
        "num_heads": heads,
        "head_dim": head_dim,
        "width": heads * head_dim,
        "mlp_width": draw(st.integers(1, 40)),
        "norm_eps": draw(st.floats(1e-8, 1e-2)),
        "activation": draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"])),
        "tie_embeddings": draw(st.booleans()),
        "eos_id": draw(st.none() | st.integers(0, 9) | st.just((1, 2))),
        **FAMILIES[family].always,
    }
    if family == "gpt2":
        return ModelConfig(**fields, scale_attention=draw(st.booleans()))
    fields["num_kv_heads"] = draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0]))
    fields["rope_scaling"] = draw(st.sampled_from([None, *SCALINGS]))
    if family in ("llama", "qwen3"):
        fields["qkv_bias"] = fields["output_bias"] = draw(st.booleans())
    chosen = {
        "llama": st.just(()),
        "mistral": st.sampled_from([(), tuple(range(layers))]),
    }.get(family, st.sets(st.integers(0, layers - 1)).map(lambda found: tuple(sorted(found))))
    fields["sliding_layers"] = draw(chosen)
    fields["sliding_window"] = draw(st.integers(1, 50)) if fields["sliding_layers"] else None
    return ModelConfig(**fields)


SCALINGS = (
    RopeScaling(kind="linear", factor=1.5),
    RopeScaling(kind="llama3", factor=8, original_context_length=7, low_freq_factor=0.5),
    RopeScaling(kind="yarn", factor=4, original_context_length=9, attention_factor=1.25),
    RopeScaling(kind="yarn", factor=4, original_context_length=9, mscale=0.7, truncate=False),
)


@settings(max_examples=150, deadline=None)
@given(expressible())
def test_writing_then_reading_gives_the_same_model(config: ModelConfig) -> None:
    assert read_config(json.loads(json.dumps(write_config(config, "float32")))) == config


@settings(max_examples=40, deadline=None)
@given(expressible())
def test_every_parameter_is_stored_once_and_comes_back(config: ModelConfig) -> None:
    with torch.device("meta"):
        parameters = Transformer(config).state_dict()
    stored = stored_tensors(config, parameters)
    parts = [part for tensor in stored for part in tensor.parts]
    assert sorted(parts) == sorted(parameters)
    assert len({tensor.name for tensor in stored}) == len(stored)
    for tensor in stored:
        joined = tensor.join(parameters)
        assert tuple(joined.shape) == tensor.shape
        assert all(
            piece.shape == parameters[part].shape for part, piece in tensor.split(joined).items()
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
KEYS = sorted(
    {"rope_scaling", "rope_parameters", "rope_theta", "layer_types", "eos_token_id", "hidden_act"}
    | {"sliding_window", "use_sliding_window", "max_window_layers", "pad_token_id"}
    | {key for form in FAMILIES.values() for key in (*form.fields, *form.only, *form.aliases)}
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FAMILY_NAMES), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_any_value_is_understood_or_a_typed_error(family: Family, values: dict[str, Any]) -> None:
    try:
        config = read_config({"model_type": family, **values})
    except ConfigError:
        return
    assert config.family == family
