"""Where weights, keys and values lie in memory: on huge pages where the system has them.

A processor looks up the place of every page that it reads. Decoding reads all weights and all that
it remembers for each token, in pages of 4 KiB half a million for 2 GB; in huge pages of 2 MiB it is
a thousand.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from stepwell.device import free_memory

HUGE_PAGE: Final = 2**21
REGION: Final = 16 * HUGE_PAGE  # asked of the system at once, at least; untouched it takes nothing
ALIGNMENT: Final = 64
CPU: Final = torch.device("cpu")
SWITCH: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@functools.cache
def has_huge_pages() -> bool:
    """Whether the system gives huge pages to those who ask for them: Linux, unless switched off."""
    try:
        return "[never]" not in SWITCH.read_text() and hasattr(mmap, "MADV_HUGEPAGE")
    except OSError:
        return False


def pays_to_copy(num_bytes: int) -> bool:
    """Whether weights of this size should lie on huge pages rather than be pages of their file.

    Reading them is then 10 to 20% faster. They take memory of their own: at most half of what is
    free.
    """
    free = free_memory()
    return has_huge_pages() and free is not None and 2 * num_bytes <= free


class WeightMemory:
    """Room for the tensors of one model. On a CPU a tensor keeps the region alive that it is in."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self._region = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, contiguous, at a multiple of 64 bytes."""
        size = prod(shape) * dtype.itemsize
        if not size or self.device.type != "cpu":
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        if self._used + size > len(self._region):
            self._region, self._used = _region(max(size, REGION)), 0
        room = self._region[self._used : self._used + size]
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return room.view(dtype).view(tuple(shape))

    def copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The same values, in another number format where one is given."""
        return self.empty(tensor.shape, dtype or tensor.dtype).copy_(tensor.detach())


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, on huge pages where there are any and the tensor fills one."""
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE_PAGE or not has_huge_pages():
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return _region(size).view(dtype).view(tuple(shape))


def _region(size: int) -> Tensor:
    """Fresh memory, uint8, that begins with a huge page where the system has them, and is zero."""
    if not has_huge_pages():
        return torch.zeros(size, dtype=torch.uint8, device="cpu")
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapping = mmap.mmap(-1, size + HUGE_PAGE, flags=private)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    begin = -whole.data_ptr() % HUGE_PAGE
    return whole[begin : begin + size]
