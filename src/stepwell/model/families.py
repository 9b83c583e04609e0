"""The families as data: how Llama, Mistral, Qwen2, Qwen3 and GPT-2 spell a ModelConfig.

Owns the tables of config.json: which key sets which field, what transformers takes where a key is
missing, and what is harmless to ignore. `config_json` reads and writes with them; the names of
tensors are in `names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from stepwell.model.config import Activation, Family

Windows = Literal["none", "every layer", "chosen layers"]


@dataclass(frozen=True)
class FamilyFormat:
    """One family's config.json.

    fields: key -> the fields of ModelConfig that it sets (they are equal in this family).
    defaults: key -> its value where the file lacks it. The type is the key's type; None: derived.
    always: the fields of ModelConfig that every model of the family has, without a key.
    only: key -> the values that leave the arithmetic as it is; any other is refused.
    aliases: another spelling -> key.
    """

    architecture: str
    fields: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any]
    activation_key: str = "hidden_act"
    activation: str = "silu"
    always: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    rotary: bool = True
    windows: Windows = "none"
    window: int | None = None
    heads_divide_width: bool = False
    bos_id: int | None = None
    eos_id: int | None = None


NULLABLE = frozenset({"num_key_value_heads", "head_dim", "n_inner"})
"""Keys whose null means "derive it from the others"."""

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "gelu_python_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu_accurate": "gelu_tanh",
        "relu": "relu",
    }
)
"""hidden_act -> ours. Of those that mean the same, the family's default or the first is written."""

ROPE_KEYS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "default": {},
        "linear": {"factor": "factor"},
        "llama3": {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_position_embeddings": "original_context_length",
        },
        "yarn": {
            "factor": "factor",
            "original_max_position_embeddings": "original_context_length",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            "mscale": "mscale",
            "mscale_all_dim": "mscale_all_dim",
            "truncate": "truncate",
        },
    }
)
"""rope_type -> its keys -> the fields of RopeScaling that they set."""

ROPE_REQUIRED = frozenset({"factor", "low_freq_factor", "high_freq_factor"})
DEFAULT_ROPE_THETA = 10_000.0

IGNORED = frozenset(
    """
    architectures model_type name_or_path _name_or_path transformers_version _commit_hash auto_map
    tokenizer_class prefix finetuning_task task_specific_params unsloth_version unsloth_fixed
    is_llama_config transformers.js_config dtype torch_dtype use_bfloat16 torchscript tf_legacy_loss
    _attn_implementation_autoset attn_implementation _flash_attn_2_enabled

    attention_dropout attn_pdrop embd_pdrop resid_pdrop dropout initializer_range initializer_factor

    use_cache cache_implementation output_hidden_states output_attentions return_dict
    use_return_dict chunk_size_feed_forward tie_last_hidden_states pretraining_tp is_decoder
    cross_attention_hidden_size tie_encoder_decoder n_ctx max_sequence_length

    id2label label2id num_labels _num_labels problem_type classifier_dropout summary_type
    summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout

    sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id max_length
    min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens

    reorder_and_upcast_attn
    """.split()  # noqa: SIM905
)
"""Keys that change nothing we compute, by group: what the file is about; dropout and initial
values; caches, outputs and how a product is cut up; classification heads; sampling (where
generation_config.json rules). reorder_and_upcast_attn asks for scores and softmax in float32, which
ours always are.
"""

_ONLY: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "per_layer_config": (None, {}),
}

_ONLY_ROTARY = {
    **_ONLY,
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": (None, False),
    "use_mrope": (None, False),
}

_ROTARY_FIELDS: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("context_length",),
    "hidden_size": ("width",),
    "intermediate_size": ("mlp_width",),
    "num_hidden_layers": ("num_layers",),
    "num_attention_heads": ("num_heads",),
    "num_key_value_heads": ("num_kv_heads",),
    "head_dim": ("head_dim",),
    "rms_norm_eps": ("norm_eps",),
    "tie_word_embeddings": ("tie_embeddings",),
}

_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "output_bias")}

_ROTARY_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

_QWEN_DEFAULTS = {
    **_ROTARY_DEFAULTS,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
}

FAMILIES: Mapping[Family, FamilyFormat] = MappingProxyType(
    {
        "llama": FamilyFormat(
            architecture="LlamaForCausalLM",
            fields={**_ROTARY_FIELDS, **_ATTENTION_BIAS, "mlp_bias": ("mlp_bias",)},
            defaults={
                **_ROTARY_DEFAULTS,
                "vocab_size": 32_000,
                "max_position_embeddings": 2048,
                "intermediate_size": 11_008,
                "num_key_value_heads": None,
                "attention_bias": False,
                "mlp_bias": False,
            },
            only={**_ONLY_ROTARY, "sliding_window": (None,)},
            heads_divide_width=True,
            bos_id=1,
            eos_id=2,
        ),
        "mistral": FamilyFormat(
            architecture="MistralForCausalLM",
            fields=_ROTARY_FIELDS,
            defaults={
                **_ROTARY_DEFAULTS,
                "vocab_size": 32_000,
                "max_position_embeddings": 131_072,
                "intermediate_size": 14_336,
                "num_key_value_heads": 8,
            },
            only={**_ONLY_ROTARY, "attention_bias": (False,), "mlp_bias": (False,)},
            windows="every layer",
            window=4096,
            bos_id=1,
            eos_id=2,
        ),
        "qwen2": FamilyFormat(
            architecture="Qwen2ForCausalLM",
            fields=_ROTARY_FIELDS,
            defaults=_QWEN_DEFAULTS,
            always={"qkv_bias": True},
            only={**_ONLY_ROTARY, "attention_bias": (True,), "mlp_bias": (False,)},
            windows="chosen layers",
            window=4096,
        ),
        "qwen3": FamilyFormat(
            architecture="Qwen3ForCausalLM",
            fields={**_ROTARY_FIELDS, **_ATTENTION_BIAS},
            defaults={**_QWEN_DEFAULTS, "head_dim": 128, "attention_bias": False},
            always={"qk_norm": True},
            only={**_ONLY_ROTARY, "mlp_bias": (False,)},
            windows="chosen layers",
            window=4096,
        ),
        "gpt2": FamilyFormat(
            architecture="GPT2LMHeadModel",
            fields={
                "vocab_size": ("vocab_size",),
                "n_positions": ("context_length",),
                "n_embd": ("width",),
                "n_inner": ("mlp_width",),
                "n_layer": ("num_layers",),
                "n_head": ("num_heads",),
                "layer_norm_epsilon": ("norm_eps",),
                "tie_word_embeddings": ("tie_embeddings",),
                "scale_attn_weights": ("scale_attention",),
                "scale_attn_by_inverse_layer_idx": ("scale_attention_by_layer",),
            },
            defaults={
                "vocab_size": 50_257,
                "n_positions": 1024,
                "n_embd": 768,
                "n_inner": None,
                "n_layer": 12,
                "n_head": 12,
                "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": True,
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
            },
            activation_key="activation_function",
            activation="gelu_new",
            always={
                "norm": "layer",
                "position": "learned",
                "gated_mlp": False,
                "qkv_bias": True,
                "output_bias": True,
                "mlp_bias": True,
            },
            only=_ONLY,
            aliases={
                "max_position_embeddings": "n_positions",
                "hidden_size": "n_embd",
                "num_hidden_layers": "n_layer",
                "num_attention_heads": "n_head",
            },
            rotary=False,
            heads_divide_width=True,
            bos_id=50_256,
            eos_id=50_256,
        ),
    }
)
