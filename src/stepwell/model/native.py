"""A Transformer's weights, as the native kernels want them told. Nothing is computed here."""

from __future__ import annotations

import torch
from torch import nn

from stepwell.model.attention import Attention
from stepwell.model.mlp import MLP
from stepwell.model.norm import RMSNorm
from stepwell.model.quantize import QuantizedLinear
from stepwell.model.quantize4 import FourBitLinear
from stepwell.model.transformer import Block, Transformer
from stepwell.native.decoder import (
    Decoder,
    DecoderWeights,
    LayerWeights,
    LinearWeights,
    NormWeights,
)
from stepwell.native.library import load

FLOATS = (torch.float32, torch.bfloat16)


def native_decoder(model: Transformer) -> Decoder | None:
    """A decoder over the model's own weights; None where there are no kernels for it.

    It sees what is later written into matrices and embeddings, and into the norms and biases of a
    float32 model. Those of a bfloat16 model it has copied to float32, and it has copied what is not
    contiguous: later writes do not reach these. Tensors put in a weight's place are never seen.
    """
    library = load()
    if library is None or model.device.type != "cpu" or model.dtype not in FLOATS:
        return None
    if any(isinstance(module, FourBitLinear) for module in model.modules()):
        return None
    floats = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if not floats <= {model.dtype, *_scales(model)}:
        return None
    return Decoder(library, _weights(model))


def _scales(model: Transformer) -> set[torch.dtype]:
    """The number format of scales, where the model has any."""
    quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
    return {torch.float32} if quantized else set()


def _weights(model: Transformer) -> DecoderWeights:
    config = model.config
    positions = model.position_embed
    rope = None if positions is not None else model.rope_table(config.context_length)
    return DecoderWeights(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        mlp_width=config.mlp_width,
        activation=config.activation,
        positions=config.context_length,
        embedding=model.embed.weight,
        position_embedding=None if positions is None else positions.weight,
        cosines=None if rope is None else rope[0],
        sines=None if rope is None else rope[1],
        layers=[_layer(block) for block in model.blocks],
        final_norm=_norm(model.final_norm),
        head=(
            LinearWeights(model.embed.weight, config.width)
            if model.head is None
            else _linear(model.head)
        ),
    )


def _layer(block: nn.Module) -> LayerWeights:
    assert isinstance(block, Block)
    attention: Attention = block.attention
    mlp: MLP = block.mlp
    return LayerWeights(
        attention_norm=_norm(block.attention_norm),
        mlp_norm=_norm(block.mlp_norm),
        q_norm=None if attention.q_norm is None else _norm(attention.q_norm),
        k_norm=None if attention.k_norm is None else _norm(attention.k_norm),
        q=_linear(attention.q_proj),
        k=_linear(attention.k_proj),
        v=_linear(attention.v_proj),
        o=_linear(attention.o_proj),
        gate=None if mlp.gate is None else _linear(mlp.gate),
        up=_linear(mlp.up),
        down=_linear(mlp.down),
        score_scale=attention.scale,
        window=attention.window,
    )


def _linear(linear: nn.Module) -> LinearWeights:
    assert isinstance(linear, nn.Linear | QuantizedLinear)
    scale = linear.scale if isinstance(linear, QuantizedLinear) else None
    return LinearWeights(linear.weight, linear.in_features, linear.bias, scale)


def _norm(norm: nn.Module) -> NormWeights:
    assert isinstance(norm, RMSNorm | nn.LayerNorm)
    bias: torch.Tensor | None = getattr(norm, "bias", None)
    return NormWeights(norm.weight, bias, norm.eps, centred=isinstance(norm, nn.LayerNorm))
