"""The kernel that draws uniform noise: what generate/noise.py defines, bit for bit.

Knows the address of a row as five words, and nothing of what they mean.
"""

from __future__ import annotations

import array
import functools
from collections.abc import Callable
from ctypes import c_int32, c_void_p
from typing import Any, Final

import torch
from torch import Tensor

from stepwell.native.library import load, threads

WORDS: Final = 5
WORTH_A_THREAD: Final = 2**14
"""Numbers for which another thread saves more than it takes to wake it."""


def uniform(addresses: array.array[int], tokens: int) -> Tensor | None:
    """Noise [rows, tokens], float32, of rows of WORDS words; None where there are no kernels."""
    function = _function()
    if function is None:
        return None
    rows = len(addresses) // WORDS
    out = torch.empty(rows, tokens, dtype=torch.float32, device="cpu")
    count = min(threads(), 1 + out.numel() // WORTH_A_THREAD)
    function(addresses.buffer_info()[0], rows, tokens, out.data_ptr(), count)
    return out


@functools.cache
def _function() -> Callable[..., Any] | None:
    library = load()
    if library is None:
        return None
    function = library.handle.stepwell_uniform
    function.restype = None
    function.argtypes = [c_void_p, c_int32, c_int32, c_void_p, c_int32]
    return function
