"""8-bit weights: half the memory of bfloat16, and so half the time of decoding, for a small loss.

Each row of a matrix is cut into groups of GROUP inputs with a scale of their own: w = scale * q, q
from -127 to 127. On a CPU the native kernels multiply these integers as they are; elsewhere a
layer's weights are turned back into floats when they are needed, one layer at a time.

Owns as well which matrices of a model are rounded, to 8 bits or 4, one after the other. The 4-bit
layer is in `quantize4`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.model.memory import WeightMemory
from stepwell.model.quantize4 import FourBitLinear
from stepwell.model.transformer import Transformer
from stepwell.native.decoder import GROUP

ZERO = 128
"""What is stored for q = 0: bytes without a sign suit the processors' dot products."""

STRIP: Final = 2**16
"""Weights that are rounded at once: a matrix is never in memory as float32 as a whole."""


class QuantizedLinear(nn.Module):
    """y = W x + bias with 8-bit weights [N, groups * GROUP] and scales [N, groups], float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, memory: WeightMemory) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        stored, scale = quantize(weight, memory)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize(self.weight, self.scale)[:, : self.in_features]
        return F.linear(x, weight.to(x.dtype), self.bias)


def quantize(weight: Tensor, memory: WeightMemory | None = None) -> tuple[Tensor, Tensor]:
    """A matrix [N, K] as bytes [N, groups * GROUP] and scales [N, groups], float32.

    The largest weight of a group becomes 127 or -127; a group of zeros has the scale 0.
    """
    (outputs, inputs), memory = weight.shape, memory or WeightMemory(weight.device)
    groups, step = -(-inputs // GROUP), max(1, STRIP // inputs)
    stored = memory.empty((outputs, groups * GROUP), torch.uint8)
    scale = memory.empty((outputs, groups), torch.float32)
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        stored[rows], scale[rows] = _quantize_strip(weight.detach()[rows])
    return stored, scale


def _quantize_strip(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    groups_NGK = F.pad(weight.float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    scale_NG = groups_NGK.abs().amax(-1) / 127
    inverse_NG = torch.where(scale_NG > 0, 1 / scale_NG, 0.0)
    q_NGK = (groups_NGK * inverse_NG[..., None]).round_().add_(ZERO)
    return q_NGK.to(torch.uint8).view(outputs, -1), scale_NG


def dequantize(stored: Tensor, scale: Tensor) -> Tensor:
    """The matrix [N, groups * GROUP] that bytes and scales stand for, float32."""
    groups_NGK = (stored.float() - ZERO).view(*scale.shape, GROUP)
    return (groups_NGK * scale[..., None]).view(stored.shape)


@dataclass(frozen=True)
class Rounding:
    """What becomes of a model's matrices: the layer that keeps one, and whether the head is one."""

    layer: Callable[[Tensor, Tensor | None, WeightMemory], nn.Module]
    head: bool

    def matrices(self, model: Transformer) -> dict[str, str]:
        """The parameters that are rounded, each with the module it is put into, the head last."""
        named = model.named_modules()
        found = {f"{name}.weight": name for name, part in named if isinstance(part, nn.Linear)}
        found.pop("head.weight", None)
        if self.head:
            found["embed.weight" if model.head is None else "head.weight"] = "head"
        return found

    @torch.no_grad()
    def put(self, model: Transformer, name: str, weight: Tensor, memory: WeightMemory) -> None:
        """Replaces the module of that name by one with `weight` [N, K], rounded."""
        bias = None if name == "head" else model.get_submodule(name).bias
        assert bias is None or isinstance(bias, Tensor)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, self.layer(weight, bias, memory))


RoundedFormat = Literal["int8", "int4"]

ROUNDINGS: Final[Mapping[str, Rounding]] = {
    "int8": Rounding(QuantizedLinear, head=True),
    "int4": Rounding(lambda weight, bias, _: FourBitLinear(weight, bias), head=False),
}


def quantize_weights(model: Transformer, weights: RoundedFormat = "int8") -> Transformer:
    """The same model with 8- or 4-bit weights in its matrices, in place, one after the other.

    Embeddings stay as they are, with 4 bits the head too; with 8 bits a tied head becomes a
    quantized copy of the embedding. The model can no longer be trained.

    Raises ConfigError and DeviceError for "int4" as `FourBitLinear` does.
    """
    rounding, memory = ROUNDINGS[weights], WeightMemory(model.device)
    for parameter, name in rounding.matrices(model).items():
        rounding.put(model, name, model.get_parameter(parameter), memory)
    return model.requires_grad_(False).eval()
