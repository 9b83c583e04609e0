"""safetensors files: read as views of the mapped file, written one tensor at a time.

Owns the bytes of one file. Which files make a model, and what their tensors are called, is the
business of `weights`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stepwell.errors import WeightsError

_ALIGNMENT = 64
_DTYPE_WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped: a page of it is read when first touched, a write copies it.

    The file may be replaced (by renaming another over it) while the tensors live, not overwritten.

    Raises WeightsError where the file is missing, cut short, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(
            f"{path} does not exist.", fix="download or save the model again."
        ) from None
    except (OSError, SafetensorError) as error:
        raise _diagnosis(path, error) from None


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, in a mapping of its own: its pages leave memory when it does.

    Raises WeightsError where the file is no longer there or no longer sound.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise _diagnosis(path, error) from None


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    tensor_of: Callable[[str], Tensor],
) -> None:
    """Write the named tensors, all as `dtype`, and flush them to the disk.

    `tensor_of` is asked for one tensor at a time, so that no second copy of a model is ever held.
    The data starts at a multiple of 64 bytes, and tensors of odd sizes come last: mapped tensors
    are then aligned as those that torch allocates, and BLAS, whose one-row kernels depend on that,
    gives the same bits. (safetensors' own writer aligns to 8.)
    """
    num_bytes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    names = sorted(shapes, key=lambda name: num_bytes[name] % _ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + num_bytes[name]
        word, shape = _DTYPE_WORDS[dtype], list(shapes[name])
        header[name] = {"dtype": word, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensor_of(name).detach().to("cpu", dtype).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _diagnosis(path: Path, error: Exception) -> WeightsError:
    """The error for a file that is no safetensors file, by what it seems to be."""
    if not path.is_file():
        return WeightsError(f"{path} is no file.", fix="download or save the model again.")
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"version https://git-lfs"):
        return WeightsError(
            f"{path} is a Git LFS pointer, not the weights.",
            fix="run `git lfs pull` in its directory.",
        )
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return WeightsError(
            f"{path} is a PyTorch pickle, not a safetensors file.",
            fix="convert it with `stepwell convert`, which runs no code that it holds.",
        )
    return WeightsError(
        f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}.",
        fix="download or save it again.",
    )
