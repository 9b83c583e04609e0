"""The shape of a Transformer: every field that changes its arithmetic, and nothing else.

Families (Llama, Mistral, Qwen2, Qwen3, GPT-2) are choices of these fields. How they are spelled in
a foreign config.json is the business of `families`; named shapes are in `presets`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from stepwell.config import Config

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


class RopeScaling(Config):
    """How rotary frequencies are stretched beyond the context that a model was trained on.

    linear: Chen et al. 2023. llama3: Llama 3.1's piecewise rule. yarn: Peng et al. 2023.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float = Field(ge=1.0)
    original_context_length: int | None = Field(None, ge=1)
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        if self.kind != "linear" and self.original_context_length is None:
            raise ValueError(f"{self.kind} rope scaling needs original_context_length")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("llama3 rope scaling needs high_freq_factor above low_freq_factor")
        return self


class ModelConfig(Config):
    """Everything that decides a Transformer's arithmetic. Widths in channels, lengths in tokens."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    family: Family = "llama"
    """Whose files the model is saved as."""
    vocab_size: int = Field(256, ge=1)
    """Number of token ids."""
    context_length: int = Field(512, ge=1)
    """Longest sequence."""
    width: int = Field(128, ge=1)
    """Channels of the residual stream."""
    num_layers: int = Field(2, ge=1)
    """Blocks of attention and MLP."""
    num_heads: int = Field(4, ge=1)
    """Query heads a layer."""
    num_kv_heads: int = Field(0, ge=0)
    """Key and value heads a layer; 0: as many as num_heads."""
    head_dim: int = Field(0, ge=0)
    """Channels of a head; 0: width / num_heads."""
    mlp_width: int = Field(0, ge=0)
    """Channels inside the MLP; 0: four times the width, or 8/3 of it when gated."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the mean square or variance."""
    position: Literal["rope", "learned"] = "rope"
    """Rotary positions, or a learned embedding of each."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """How the wavelengths are stretched beyond the context of training."""
    activation: Activation = "silu"
    """Of the MLP."""
    gated_mlp: bool = True
    """down(act(gate(x)) * up(x)) instead of down(act(up(x)))."""
    qkv_bias: bool = False
    """A bias on queries, keys and values."""
    output_bias: bool = False
    """A bias on the attention's output projection."""
    mlp_bias: bool = False
    """A bias on the MLP's projections."""
    qk_norm: bool = False
    """Normalise each head's queries and keys."""
    tie_embeddings: bool = True
    """The head is the embedding, transposed."""
    sliding_window: int | None = Field(None, ge=1)
    """Tokens that each query looks back on, in `sliding_layers`."""
    sliding_layers: tuple[int, ...] = ()
    """Layers with the window."""
    scale_attention: bool = True
    """Divide scores by the root of head_dim."""
    scale_attention_by_layer: bool = False
    """Divide scores by layer + 1 as well (GPT-2)."""

    bos_id: int | None = None
    """Token that begins a text."""
    eos_id: int | tuple[int, ...] | None = None
    """Token or tokens that end one."""
    pad_id: int | None = None
    """Token that fills rows up."""

    @model_validator(mode="after")
    def _fill_derived_sizes(self) -> Self:
        for name, size in self._derived_sizes.items():
            self.__dict__[name] = getattr(self, name) or size  # the fields are frozen
        return self

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        if bool(self.sliding_layers) != (self.sliding_window is not None):
            raise ValueError("sliding_window and sliding_layers are given together or not at all")
        if any(not 0 <= layer < self.num_layers for layer in self.sliding_layers):
            raise ValueError(f"sliding_layers names a layer outside 0..{self.num_layers - 1}")
        return self

    def resized(self, **values: Any) -> ModelConfig:
        """A copy with some sizes replaced, and those anew that had been derived from them."""
        derived = self._derived_sizes.items()
        kept = {key: value for key, value in self if (key, value) not in derived}
        return ModelConfig(**{**kept, **values})

    @property
    def _derived_sizes(self) -> dict[str, int]:
        """What the sizes that may be left out follow from the others to be."""
        return {
            "num_kv_heads": self.num_heads,
            "head_dim": max(1, self.width // self.num_heads),
            "mlp_width": _gated_width(self.width) if self.gated_mlp else 4 * self.width,
        }

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token id that ends a text."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    @property
    def num_parameters(self) -> int:
        """Number of trained values, embeddings included (a tied head counts once)."""
        norm = 2 if self.norm == "layer" else 1  # values a channel
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = self.qkv_bias * (queries + 2 * keys) + self.output_bias * self.width
        biases += self.mlp_bias * ((1 + self.gated_mlp) * self.mlp_width + self.width)
        norms = norm * (2 * self.width + 2 * self.head_dim * self.qk_norm)
        embeddings = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
        embeddings += self.context_length * self.width * (self.position == "learned")
        layer = self._weights_in_layer + biases + norms
        return self.num_layers * layer + embeddings + norm * self.width

    def flops(self, num_tokens: int, context: int) -> float:
        """Floating-point operations of a forward over tokens that each attend to `context` keys.

        Two for each weight of a matrix (the head included, the embedding lookup not) and token, and
        4 * context * heads * head_dim a layer for attention; what is linear in the width is left
        out. Source: Kaplan et al. 2020, section 2.1.
        """
        weights = self.num_layers * self._weights_in_layer + self.vocab_size * self.width
        attention = 4 * context * self.num_heads * self.head_dim * self.num_layers
        return float(num_tokens) * (2 * weights + attention)

    @property
    def _weights_in_layer(self) -> int:
        """Number of weights in the matrices of one layer."""
        attention = 2 * self.head_dim * (self.num_heads + self.num_kv_heads)
        return self.width * (attention + (2 + self.gated_mlp) * self.mlp_width)


def _gated_width(width: int) -> int:
    """Width of a gated MLP with the parameters of a plain one of 4 * width, a multiple of 8."""
    return max(8, round(8 * width / 3 / 8) * 8)
