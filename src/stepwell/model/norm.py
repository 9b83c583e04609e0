"""Normalisation: RMSNorm, and LayerNorm where a family wants it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepwell.model.config import ModelConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32. Source: Zhang and Sennrich 2019."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        unit = nn.functional.rms_norm(x.float(), self.weight.shape, eps=self.eps)
        return unit.to(x.dtype) * self.weight


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The normalisation that the configuration names, over `width` channels (else the model's)."""
    width = width or config.width
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps)
    return RMSNorm(width, config.norm_eps)
