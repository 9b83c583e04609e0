"""Small random models of every family, made by transformers: what the parity tests compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

IDS: Mapping[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
SMALL: Mapping[str, Any] = {
    **IDS,
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
GPT2: Mapping[str, Any] = {
    **IDS,
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_SPECIAL = {
    **YARN,
    "beta_fast": 8.0,
    "beta_slow": 0.5,
    "mscale": 1.2,
    "mscale_all_dim": 0.7,
    "truncate": False,
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-grouped": ("llama", {}),
    "llama-multi-query-tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12, "rms_norm_eps": 1e-2}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-yarn-special": ("llama", {"rope_scaling": YARN_SPECIAL, "rope_theta": 1000.0}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-full-wide": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen2-window-above": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2-window-alternating": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": ALTERNATING},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-bias-yarn": (
        "qwen3",
        {"attention_bias": True, "rope_scaling": YARN, "tie_word_embeddings": True},
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-inner": ("gpt2", {"n_inner": 24, "activation_function": "relu"}),
    "gpt2-by-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled-untied": ("gpt2", {"scale_attn_weights": False, "tie_word_embeddings": False}),
}


def make_foreign(name: str, **changes: Any) -> PreTrainedModel:
    """A model of transformers with every parameter random, so that no norm or bias is idle."""
    family, special = SHAPES[name]
    base = GPT2 if family == "gpt2" else SMALL
    config = AutoConfig.for_model(family, **{**base, **special, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in model.parameters():
            mean = float(parameter.dim() == 1)
            parameter.copy_(mean + 0.2 * torch.randn(parameter.shape, generator=generator))
    model.generation_config.pad_token_id = None
    return model


@pytest.fixture(scope="session", params=SHAPES)
def shape_name(request: pytest.FixtureRequest) -> str:
    """The name of one of SHAPES."""
    return str(request.param)


@pytest.fixture(scope="session")
def foreign(shape_name: str) -> PreTrainedModel:
    """One model of each shape."""
    return make_foreign(shape_name)


@pytest.fixture(scope="session")
def foreign_of() -> Any:
    """The maker of a model by the name of its shape."""
    return make_foreign


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """Two rows of 24 tokens, longer than every window and original context."""
    return torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(0))
