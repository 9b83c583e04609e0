"""The families' names of tensors, as data: ours on the left, theirs on the right.

Owns the tables and their expansion over layers, weights and biases. Reads and writes no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.model.config import Family, ModelConfig


@dataclass(frozen=True)
class Row:
    """Modules of ours that a family keeps as one, their outputs side by side; `{}` is the layer.

    transposed: the weight is stored [inputs, outputs] (GPT-2's Conv1D), ours is [outputs, inputs].
    """

    ours: tuple[str, ...]
    theirs: str
    transposed: bool = False


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, its shape there, and the parameters of ours that it holds.

    num_rows: the length of each part along its first axis, which they are joined along.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    num_rows: tuple[int, ...]
    transposed: bool

    @property
    def bare_name(self) -> str:
        """The name in a checkpoint of the model without its head, such as the first GPT-2's."""
        return self.name.removeprefix("model.").removeprefix("transformer.")

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensor to store."""
        pieces = [parameters[part] for part in self.parts]
        whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return whole.T if self.transposed else whole

    def split(self, stored: Tensor) -> dict[str, Tensor]:
        """Our parameters, as views of the stored tensor."""
        whole = stored.T if self.transposed else stored
        return dict(zip(self.parts, torch.split(whole, list(self.num_rows)), strict=True))


_LLAMA = (
    Row(("embed",), "model.embed_tokens"),
    Row(("blocks.{}.attention_norm",), "model.layers.{}.input_layernorm"),
    Row(("blocks.{}.attention.q_proj",), "model.layers.{}.self_attn.q_proj"),
    Row(("blocks.{}.attention.k_proj",), "model.layers.{}.self_attn.k_proj"),
    Row(("blocks.{}.attention.v_proj",), "model.layers.{}.self_attn.v_proj"),
    Row(("blocks.{}.attention.q_norm",), "model.layers.{}.self_attn.q_norm"),
    Row(("blocks.{}.attention.k_norm",), "model.layers.{}.self_attn.k_norm"),
    Row(("blocks.{}.attention.o_proj",), "model.layers.{}.self_attn.o_proj"),
    Row(("blocks.{}.mlp_norm",), "model.layers.{}.post_attention_layernorm"),
    Row(("blocks.{}.mlp.gate",), "model.layers.{}.mlp.gate_proj"),
    Row(("blocks.{}.mlp.up",), "model.layers.{}.mlp.up_proj"),
    Row(("blocks.{}.mlp.down",), "model.layers.{}.mlp.down_proj"),
    Row(("final_norm",), "model.norm"),
    Row(("head",), "lm_head"),
)

_QKV = ("blocks.{}.attention.q_proj", "blocks.{}.attention.k_proj", "blocks.{}.attention.v_proj")

_GPT2 = (
    Row(("embed",), "transformer.wte"),
    Row(("position_embed",), "transformer.wpe"),
    Row(("blocks.{}.attention_norm",), "transformer.h.{}.ln_1"),
    Row(_QKV, "transformer.h.{}.attn.c_attn", transposed=True),
    Row(("blocks.{}.attention.o_proj",), "transformer.h.{}.attn.c_proj", transposed=True),
    Row(("blocks.{}.mlp_norm",), "transformer.h.{}.ln_2"),
    Row(("blocks.{}.mlp.up",), "transformer.h.{}.mlp.c_fc", transposed=True),
    Row(("blocks.{}.mlp.down",), "transformer.h.{}.mlp.c_proj", transposed=True),
    Row(("final_norm",), "transformer.ln_f"),
    Row(("head",), "lm_head"),
)

NAMES: Mapping[Family, tuple[Row, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
}

HEAD = "lm_head.weight"
LAYER = re.compile(r"(?:model\.layers|layers|transformer\.h|h)\.([0-9]{1,6})\.")

REDUNDANT = re.compile(
    r"(?:model\.)?(?:layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|(?:transformer\.)?h\.[0-9]+\.attn\.(?:bias|masked_bias)"
)
"""Tensors of old checkpoints that follow from config.json: rotary frequencies and causal masks."""


def stored_tensors(config: ModelConfig, parameters: Mapping[str, Tensor]) -> list[StoredTensor]:
    """What a checkpoint of this family holds for the model's parameters, the embedding first."""
    rows = NAMES[config.family]
    layered = [row for row in rows if "{}" in row.theirs]
    start = rows.index(layered[0])
    ordered = [(row, 0) for row in rows[:start]]
    ordered += [(row, layer) for layer in range(config.num_layers) for row in layered]
    ordered += [(row, 0) for row in rows[start + len(layered) :]]
    return [
        _stored(row, layer, kind, parameters)
        for row, layer in ordered
        for kind in ("weight", "bias")
        if f"{row.ours[0].format(layer)}.{kind}" in parameters
    ]


def _stored(row: Row, layer: int, kind: str, parameters: Mapping[str, Tensor]) -> StoredTensor:
    parts = tuple(f"{name.format(layer)}.{kind}" for name in row.ours)
    num_rows = tuple(len(parameters[part]) for part in parts)
    shape = (sum(num_rows), *parameters[parts[0]].shape[1:])
    transposed = row.transposed and kind == "weight"
    name = f"{row.theirs.format(layer)}.{kind}"
    return StoredTensor(name, shape[::-1] if transposed else shape, parts, num_rows, transposed)
