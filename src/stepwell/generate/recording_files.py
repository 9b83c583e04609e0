"""Recordings on disk: one .safetensors file, one .npy file, or a folder of those.

A safetensors file holds `POINT.LAYER.ROW` without padding, and in its metadata each row's length
and positions. A .npy file holds a single point of a single layer, all rows padded; a folder has one
for each, and recording.json for lengths and positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stepwell.config import read_json, write_atomically, write_json
from stepwell.errors import DataError, UsageError
from stepwell.generate.record import RecordedRow, Recording

FORMAT_VERSION: Final = 1
INDEX: Final = "recording.json"


def write_recording(recording: Recording, path: str | Path) -> Path:
    """The path, where the recording now lies whole. Its suffix says the form; none is a folder.

    Raises UsageError for another suffix, and where a .npy file would have to hold several values.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix == ".safetensors":
        rows = enumerate(recording.rows)
        tensors = {
            _name(key, row): value for row, each in rows for key, value in each.values.items()
        }
        whole = {name: value.contiguous() for name, value in tensors.items()}
        metadata = {"stepwell": json.dumps(_index(recording))}
        write_atomically(path, safetensors.torch.save(whole, metadata))
    elif path.suffix == ".npy":
        if len(recording) != 1:
            found = ", ".join(f"{point} of layer {layer}" for point, layer in recording)
            raise UsageError(
                f"{path}: a .npy file holds one value, but there are {len(recording)}: {found}.",
                fix="record one point of one layer, or name a .safetensors file or a folder.",
            )
        [value] = recording.values()
        write_atomically(path, _npy(value))
    else:
        for (point, layer), value in recording.items():
            write_atomically(path / f"{point}.{layer}.npy", _npy(value))
        write_json(path / INDEX, _index(recording))
    return path


def check_suffix(path: Path) -> None:
    """Raises UsageError where a path names no form of a recording."""
    if path.suffix not in (".safetensors", ".npy", ""):
        raise UsageError(f"{path}: expected .safetensors, .npy, or a folder without a suffix.")


def read_recording(path: str | Path) -> Recording:
    """The recording of a safetensors file, rows apart as they were written.

    Raises DataError where the file is missing, damaged, or none of these.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            index = json.loads((file.metadata() or {}).get("stepwell", "{}"))
            names = list(file.keys())
            values = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.", fix="check the path.") from None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no recording: {error}.", fix="record it again.") from None
    _check(path, index)
    return Recording([_row(row, values, index) for row in range(len(index["lengths"]))])


def read_index(folder: str | Path) -> dict[str, Any]:
    """Lengths and positions of the rows of a recording that was written as a folder."""
    index: dict[str, Any] = read_json(Path(folder) / INDEX)
    _check(Path(folder), index)
    return index


def _row(row: int, values: Mapping[str, Tensor], index: Mapping[str, Any]) -> RecordedRow:
    keys = [(point, layer) for point, layer in index["keys"]]
    own = {key: values[_name(key, row)] for key in keys}
    return RecordedRow(own, index["lengths"][row], tuple(index["positions"][row]))


def _index(recording: Recording) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "keys": [list(key) for key in recording],
        "lengths": list(recording.lengths),
        "positions": [list(each) for each in recording.positions],
    }


def _check(path: Path, index: Mapping[str, Any]) -> None:
    version = index.get("format_version")
    if not isinstance(version, int):
        raise DataError(f"{path} holds no recording of stepwell.", fix="record it again.")
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format {version}, this version reads up to {FORMAT_VERSION}.",
            fix="update stepwell.",
        )


def _name(key: tuple[str, int], row: int) -> str:
    point, layer = key
    return f"{point}.{layer}.{row}"


def _npy(value: Tensor) -> bytes:
    file = BytesIO()
    np.save(file, value.numpy(), allow_pickle=False)
    return file.getvalue()
