"""8-bit weights: half the memory of bfloat16, and so half the time of decoding, for a small loss.

Each row of a matrix is cut into groups of GROUP inputs with a scale of their own: w = scale * q, q
from -127 to 127. On a CPU the native kernels multiply these integers as they are; elsewhere a
layer's weights are turned back into floats when they are needed, one layer at a time.

A place is left for 4 bits: another class beside QuantizedLinear, with kernels of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.model.transformer import Transformer
from stepwell.native.decoder import GROUP

ZERO = 128
"""What is stored for q = 0: bytes without a sign suit the processors' dot products."""


class QuantizedLinear(nn.Module):
    """y = W x + bias with 8-bit weights [N, groups * GROUP] and scales [N, groups], float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        stored, scale = quantize(weight)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize(self.weight, self.scale)[:, : self.in_features]
        return F.linear(x, weight.to(x.dtype), self.bias)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [N, K] as bytes [N, groups * GROUP] and scales [N, groups], float32.

    The largest weight of a group becomes 127 or -127; a group of zeros has the scale 0.
    """
    outputs, inputs = weight.shape
    groups_NGK = F.pad(weight.detach().float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    scale_NG = groups_NGK.abs().amax(-1) / 127
    inverse_NG = torch.where(scale_NG > 0, 1 / scale_NG, 0.0)
    q_NGK = (groups_NGK * inverse_NG[..., None]).round_().add_(ZERO)
    return q_NGK.to(torch.uint8).view(outputs, -1), scale_NG


def dequantize(stored: Tensor, scale: Tensor) -> Tensor:
    """The matrix [N, groups * GROUP] that bytes and scales stand for, float32."""
    groups_NGK = (stored.float() - ZERO).view(*scale.shape, GROUP)
    return (groups_NGK * scale[..., None]).view(stored.shape)


@torch.no_grad()
def quantize_weights(model: Transformer) -> Transformer:
    """The same model with 8-bit weights in all of its matrices but the embeddings, in place.

    A tied head becomes a quantized copy of the embedding. The model can no longer be trained.
    """
    for parent in list(model.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantizedLinear(child.weight, child.bias))
    head = model.head if isinstance(model.head, nn.Linear) else model.embed
    model.head = QuantizedLinear(head.weight, None)
    return model.requires_grad_(False).eval()
