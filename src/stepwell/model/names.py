"""The families' names of tensors, as data: ours on the left, theirs on the right.

Owns the tables and their expansion over layers, weights and biases. Reads and writes no file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
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
    """One tensor of a checkpoint and the parameters of ours that it holds, in order."""

    name: str
    parts: tuple[str, ...]
    transposed: bool

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensor to store, contiguous."""
        pieces = [parameters[part] for part in self.parts]
        whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return (whole.T if self.transposed else whole).contiguous()

    def split(self, stored: Tensor, num_rows: Sequence[int]) -> dict[str, Tensor]:
        """Our parameters as views of the stored tensor; `num_rows` is the length of each."""
        whole = stored.T if self.transposed else stored
        return dict(zip(self.parts, whole.split(list(num_rows)), strict=True))

    def shape(self, parameters: Mapping[str, Tensor]) -> list[int]:
        """The shape that it is stored in."""
        first = parameters[self.parts[0]]
        shape = [sum(parameters[part].shape[0] for part in self.parts), *first.shape[1:]]
        return shape[::-1] if self.transposed else shape


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
PREFIX = re.compile(r"(?:model|transformer)\.")
"""What a checkpoint of the bare model, without its head, leaves off its names."""

LAYER = re.compile(r"(?:model\.layers|layers|transformer\.h|h)\.([0-9]{1,6})\.")

REDUNDANT = re.compile(
    r"(?:model\.)?(?:layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|(?:transformer\.)?h\.[0-9]+\.attn\.(?:bias|masked_bias)"
)
"""Tensors that old checkpoints carry and that follow from config.json: rotary frequencies, masks."""


def stored_tensors(config: ModelConfig, parameters: Collection[str]) -> list[StoredTensor]:
    """What a checkpoint of this family holds for the named parameters, layer by layer."""
    found = []
    rows = NAMES[config.family]
    layered = [row for row in rows if "{}" in row.theirs]
    start = rows.index(layered[0])
    order = [(row, 0) for row in rows[:start]]
    order += [(row, layer) for layer in range(config.num_layers) for row in layered]
    order += [(row, 0) for row in rows[start + len(layered) :]]
    for row, layer in order:
        for kind in ("weight", "bias"):
            parts = tuple(f"{name.format(layer)}.{kind}" for name in row.ours)
            if all(part in parameters for part in parts):
                name = f"{row.theirs.format(layer)}.{kind}"
                found.append(StoredTensor(name, parts, row.transposed and kind == "weight"))
    return found
