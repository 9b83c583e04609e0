"""Rotary positions: the frequencies, the table of cosines and sines, and the rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepwell.model.config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians a position for each pair of channels, float32 [D/2], and the factor on cos and sin.

    Sources: Su et al. 2021; scaling as in `RopeScaling`.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    base = 1.0 / (config.rope_theta**half)
    scaling = config.rope_scaling
    if scaling is None:
        return base, 1.0
    if scaling.kind == "linear":
        return base / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(base, scaling), 1.0
    return _yarn(base, scaling, config), _yarn_attention_factor(scaling)


def _llama3(base: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves divided by the factor, short ones kept, those between blended."""
    assert scaling.original_context_length is not None
    waves = scaling.original_context_length * base / (2 * math.pi)  # turns within the old context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((waves - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * base / scaling.factor + blend * base


def _yarn(base: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """Interpolated where a channel turns rarely, kept where it turns often, a ramp between."""
    assert scaling.original_context_length is not None

    def channel_of(turns: float) -> float:
        length = scaling.original_context_length or 1
        ratio = math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        return config.head_dim * ratio

    low, high = channel_of(scaling.beta_fast), channel_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(len(base)).float() - low) / (high - low)).clamp(0.0, 1.0)
    return ramp * base / scaling.factor + (1 - ramp) * base


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """The temperature that YaRN folds into cos and sin."""

    def stretch(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return stretch(scaling.mscale) / stretch(scaling.mscale_all_dim)
    return stretch(1.0)


class RopeTable:
    """Cosines and sines by position, [length, D] each, made once for a device and dtype."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, positions_BT: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(cos, sin) at positions that are all below `length`, each [B, 1, T, D]."""
        cos, sin = self._table(length, positions_BT.device, dtype)
        return cos[positions_BT].unsqueeze(1), sin[positions_BT].unsqueeze(1)

    def first(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(cos, sin) at positions 0..length-1, each [1, 1, T, D], without a copy."""
        cos, sin = self._table(length, device, dtype)
        return cos[None, None, :length], sin[None, None, :length]

    def _table(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        key = (device, dtype)
        if key not in self._tables or len(self._tables[key][0]) < length:
            self._tables[key] = self._make(1 << (length - 1).bit_length(), device, dtype)
        return self._tables[key]

    def _make(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):  # a table made while generating also serves training
            frequencies, factor = rope_frequencies(self._config)
            angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
            cos, sin = angles.cos() * factor, angles.sin() * factor
            return cos.to(device, dtype), sin.to(device, dtype)


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x with each pair of channels (d, d + D/2) turned by its position's angle."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat((-second, first), dim=-1) * sin
