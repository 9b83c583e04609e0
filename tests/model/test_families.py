"""config.json into a ModelConfig and back: each key honoured, refused, or ignored by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from transformers import AutoConfig

from stepwell.errors import ConfigError
from stepwell.model.config import Family, RopeScaling
from stepwell.model.config_json import read_config, read_dtype
from stepwell.model.families import FAMILIES, IGNORED

FAMILY_NAMES: tuple[Family, ...] = get_args(Family)
every_family = pytest.mark.parametrize("family", FAMILY_NAMES)

# As published on the Hugging Face Hub, and what they must mean.
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": (
        """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257}""",
        {
            "family": "gpt2",
            "width": 768,
            "mlp_width": 3072,
            "head_dim": 64,
            "norm": "layer",
            "position": "learned",
            "activation": "gelu_tanh",
            "gated_mlp": False,
            "qkv_bias": True,
            "tie_embeddings": True,
            "eos_id": 50256,
            "num_parameters": 124_439_808,
        },
    ),
    "Llama-3.2-1B": (
        """{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
        "use_cache": true, "vocab_size": 128256}""",
        {
            "num_kv_heads": 8,
            "norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": RopeScaling(
                kind="llama3", factor=32.0, original_context_length=8192, high_freq_factor=4.0
            ),
            "eos_id": (128001, 128008, 128009),
            "num_parameters": 1_235_814_400,
        },
    ),
    "Mistral-7B-v0.1": (
        """{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}""",
        {
            "head_dim": 128,
            "sliding_window": 4096,
            "sliding_layers": tuple(range(32)),
            "num_parameters": 7_241_732_096,
        },
    ),
    "Qwen2.5-0.5B": (
        """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
        "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}""",
        {
            "qkv_bias": True,
            "output_bias": False,
            "sliding_window": None,
            "num_parameters": 494_032_768,
        },
    ),
    "Qwen3-0.6B": (
        """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936}""",
        {"qk_norm": True, "head_dim": 128, "qkv_bias": False, "num_parameters": 596_049_920},
    ),
    "SmolLM2-135M": (
        """{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
        "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
        "is_llama_config": true, "max_position_embeddings": 8192, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
        "vocab_size": 49152}""",
        {"head_dim": 64, "eos_id": 0, "num_parameters": 134_515_008},
    ),
}

REFUSED: tuple[tuple[Family, dict[str, Any], str], ...] = (
    ("llama", {"hidden_act": "quick_gelu"}, 'hidden_act is "quick_gelu"'),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 'rope_type is "dynamic"'),
    ("llama", {"rope_scaling": {"type": "longrope"}}, 'rope_type is "longrope"'),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is null"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor is 0.5"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "x": 1}}, "rope_scaling.x"),
    ("llama", {"rope_scaling": 2.0}, "rope_scaling is 2.0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, "rope_theta is 5.0"),
    (
        "llama",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 3.0},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
        "different things",
    ),
    ("llama", {"sliding_window": 128}, "sliding_window is 128"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"num_key_value_heads": 3}, "no multiple of num_kv_heads 3"),
    ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ("llama", {"hidden_size": "64"}, 'hidden_size is "64"'),
    ("llama", {"hidden_size": True}, "hidden_size is true"),
    ("llama", {"hidden_size": 10**12}, "hidden_size is 10"),
    ("llama", {"hidden_size": 2**27, "intermediate_size": 2**27}, "more than any model"),
    ("llama", {"hidden_size": 4100}, "cannot be split into 32 heads"),
    ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
    ("llama", {"rope_theta": float("inf")}, "rope_theta is Infinity"),
    ("llama", {"rope_theta": 10**400}, "rope_theta is 10"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ("llama", {"eos_token_id": "</s>"}, 'eos_token_id is "</s>"'),
    ("llama", {"eos_token_id": []}, "eos_token_id"),
    ("llama", {"head_dim": 7}, "even head_dim"),
    ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("mistral", {"attention_bias": True}, "attention_bias is true"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 32}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention"] * 31}, "layer_types"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 32}, "layer_types"),
    ("qwen2", {"layer_types": [[]] * 32}, "layer_types"),
    ("qwen2", {"use_mrope": True}, "use_mrope is true"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is true"),
    ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("gpt2", {"n_embd": 768, "hidden_size": 512}, "n_embd is 768 but hidden_size is 512"),
    ("gpt2", {"n_head": 7}, "cannot be split into 7 heads"),
)


def published(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(PUBLISHED[name][0])
    return values


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_mean_what_they_are_known_for(name: str) -> None:
    config = read_config(published(name))
    for field, expected in PUBLISHED[name][1].items():
        assert getattr(config, field) == expected, field


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_own_rewriting_of_a_configuration_means_the_same(name: str) -> None:
    rewritten = json.loads(AutoConfig.for_model(**published(name)).to_json_string(use_diff=False))
    assert read_config(rewritten) == read_config(published(name))


@every_family
def test_missing_keys_are_as_in_transformers(family: Family) -> None:
    full = json.loads(AutoConfig.for_model(family).to_json_string(use_diff=False))
    assert read_config({"model_type": family}) == read_config(full)


@pytest.mark.parametrize(("family", "values", "message"), REFUSED)
def test_what_is_not_computed_is_refused_by_key_value_and_file(
    family: Family, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"model_type": family, **values}, where="somewhere/config.json")
    assert message in caught.value.problem
    assert caught.value.problem.startswith("somewhere/config.json")


def test_an_unknown_key_is_refused_unless_the_user_vouches_for_it() -> None:
    values = {"model_type": "llama", "attention_sink": 4}
    with pytest.raises(ConfigError, match="attention_sink = 4") as caught:
        read_config(values)
    assert "ignore_keys=('attention_sink',)" in caught.value.fix
    assert read_config(values, ignore_keys=("attention_sink",)) == read_config(
        {"model_type": "llama"}
    )


def test_a_key_inside_a_group_can_be_ignored_by_its_full_name() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    known = {"model_type": "llama", "rope_scaling": scaling}
    odd = {"model_type": "llama", "rope_scaling": {**scaling, "finetuned": True}}
    with pytest.raises(ConfigError, match=r"rope_scaling.finetuned = true"):
        read_config(odd)
    assert read_config(odd, ignore_keys=["rope_scaling.finetuned"]) == read_config(known)


@pytest.mark.parametrize("name", ["mixtral", None, "Llama", ["llama"]])
def test_other_model_types_are_refused_with_the_five_known_ones(name: Any) -> None:
    with pytest.raises(ConfigError, match="llama, mistral, qwen2, qwen3, gpt2"):
        read_config({"model_type": name})


@every_family
def test_ignored_keys_change_nothing(family: Family) -> None:
    ignored = dict.fromkeys(IGNORED - {"model_type"}, "anything")
    assert read_config({"model_type": family, **ignored}) == read_config({"model_type": family})


def test_no_key_is_both_ignored_and_honoured() -> None:
    for form in FAMILIES.values():
        known = {*form.fields, *form.only, *form.aliases, form.activation_key}
        assert not known & IGNORED


def test_old_spellings_of_rope_scaling() -> None:
    old = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    assert read_config(old) == read_config(new)
    assert read_config(old).rope_scaling == RopeScaling(kind="linear", factor=2.0)


def test_the_original_length_is_the_context_where_it_is_not_said() -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "mscale": None}
    config = read_config(
        {"model_type": "llama", "max_position_embeddings": 128, "rope_scaling": scaling}
    )
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_context_length == 128


def test_negative_ids_mean_none() -> None:
    values = {"model_type": "llama", "pad_token_id": -1, "eos_token_id": [2, -1]}
    config = read_config(values)
    assert (config.pad_id, config.eos_id) == (None, (2,))


def test_dtype_in_both_spellings() -> None:
    assert read_dtype({"torch_dtype": "float16"}) == torch.float16
    assert read_dtype({"dtype": "bfloat16", "torch_dtype": "float16"}) == torch.bfloat16
    assert read_dtype({}) is None
    with pytest.raises(ConfigError, match="here: dtype 'int4'"):
        read_dtype({"dtype": "int4"}, where="here")
