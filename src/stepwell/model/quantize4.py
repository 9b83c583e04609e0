"""4-bit weights by bitsandbytes: a quarter of bfloat16's memory, for GPUs.

Each row of a matrix is cut into groups of GROUP inputs. A group's largest absolute value is kept in
float32, and of each weight the nearest of 16 levels between -1 and 1: NF4, the quantiles of a
normal distribution (Dettmers et al. 2023, "QLoRA", section 3).

Owns the layer and how bitsandbytes is reached, which is an extra. It multiplies on a CPU as well,
by turning a layer back into floats every time, which is slow: no native kernel reads 4 bits.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.errors import ConfigError, DeviceError

GROUP: Final = 64
TYPE: Final = "nf4"
STRIP: Final = 2**16
"""Weights that are rounded at once: on a CPU bitsandbytes compares each with all levels."""


class FourBitLinear(nn.Module):
    """y = W x + bias with levels [N, groups * GROUP / 2], two a byte, and scales [N, groups].

    Raises ConfigError where bitsandbytes is not installed, DeviceError where it has no such device.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        library = bitsandbytes(weight.device)
        stored, scale, levels = _quantize(library, weight.detach())
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias
        self.levels: Tensor
        self.register_buffer("levels", levels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        library = import_module("bitsandbytes")
        padding = -self.in_features % GROUP
        state = library.functional.QuantState(
            absmax=self.scale.view(-1),
            shape=torch.Size((self.out_features, self.in_features + padding)),
            code=self.levels,
            blocksize=GROUP,
            quant_type=TYPE,
            dtype=x.dtype,
        )
        padded = F.pad(x, (0, padding)) if padding else x
        stored = self.weight.view(-1, 1)
        product: Tensor = library.matmul_4bit(padded, stored, quant_state=state, bias=self.bias)
        return product


def _quantize(library: ModuleType, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels [N, groups * GROUP / 2] and scales [N, groups] of a matrix [N, K]; the 16 levels."""
    (outputs, inputs), device = weight.shape, weight.device
    groups, step = -(-inputs // GROUP), max(1, STRIP // inputs)
    stored = torch.empty(outputs, groups * GROUP // 2, dtype=torch.uint8, device=device)
    scale = torch.empty(outputs, groups, dtype=torch.float32, device=device)
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        stored[rows], scale[rows], levels = _quantize_strip(library, weight[rows])
    return stored, scale, levels


def _quantize_strip(library: ModuleType, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of some of its rows, at once."""
    outputs, inputs = weight.shape
    stored, state = library.functional.quantize_4bit(
        F.pad(weight, (0, -inputs % GROUP)).contiguous(),
        blocksize=GROUP,
        compress_statistics=False,
        quant_type=TYPE,
    )
    return stored.view(outputs, -1), state.absmax.view(outputs, -1), state.code


def bitsandbytes(device: torch.device) -> ModuleType:
    """The library, which was seen to work on that device.

    Raises ConfigError where it is not installed, DeviceError where it refuses the device.
    """
    try:
        library = import_module("bitsandbytes")
    except ImportError:
        raise ConfigError(
            "weights is 'int4', which needs bitsandbytes; it is not installed.",
            fix="pip install 'stepwell[quantization]', or use weights=\"int8\".",
        ) from None
    try:
        _quantize_strip(library, torch.zeros(1, GROUP, device=device))
    except (NotImplementedError, RuntimeError) as error:  # no kernel there; no library to load
        raise DeviceError(
            f"weights is 'int4', which bitsandbytes refuses on {device}:"
            f" {str(error).partition(chr(10))[0]}",
            fix='use a CUDA device; on a CPU use weights="int8".',
        ) from error
    return library
