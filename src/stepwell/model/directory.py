"""The files of a model directory: their names, and the tensors that are in them.

Owns the choice between one file and shards, and what must agree between shards and index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from stepwell.errors import ConfigError, WeightsError
from stepwell.model.json_keys import read_json
from stepwell.model.names import LAYER
from stepwell.model.tensor_files import read_safetensors, read_tensor
from stepwell.storage.sealed import MANIFEST
from stepwell.storage.staging import UNFINISHED

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


def read_config_file(directory: Path) -> dict[str, Any]:
    """What config.json holds. Raises WeightsError where there is none, ConfigError for bad JSON."""
    path = directory / CONFIG
    if not path.exists() and (directory / UNFINISHED).is_dir():
        raise WeightsError(
            f"{directory} holds no {CONFIG}: a save was killed while it replaced the model.",
            fix=f"save again, or move the files of {UNFINISHED}/replaced back.",
        )
    return read_json(path)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their stored names, and the file that each came from. `source` names the whole.

    stamps: what tells each file from one that is put in its place, where it may be read again.
    """

    source: Path
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Path]
    stamps: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Number of layers, by the highest one that a name mentions."""
        found = filter(None, map(LAYER.match, self.tensors))
        return max((int(match[1]) + 1 for match in found), default=0)

    def read_again(self, name: str) -> Tensor:
        """A tensor in a mapping of its own: once it is let go, no page of it stays in memory.

        Raises WeightsError where another file has taken the place of the one that was opened.
        """
        file = self.files[name]
        tensor = read_tensor(file, name)
        if _stamp(file) != self.stamps[file]:
            raise WeightsError(f"{file} was replaced while it was read.", fix="load it again.")
        return tensor


def open_checkpoint(directory: Path) -> Checkpoint:
    """The tensors of a directory, one file or shards. Raises WeightsError where one is damaged."""
    if (directory / WEIGHTS).is_file():
        path = directory / WEIGHTS
        stamps = _stamps([path])
        tensors = read_safetensors(path)
        return Checkpoint(path, tensors, dict.fromkeys(tensors, path), stamps)
    if not (directory / INDEX).is_file():
        others = [
            path.name for path in sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt"))
        ]
        raise WeightsError(
            f"{directory} holds neither {WEIGHTS} nor {INDEX}.",
            fix=f"convert {others[0]} with `stepwell convert`." if others else "check the path.",
        )
    return _open_shards(directory / INDEX)


def _open_shards(index: Path) -> Checkpoint:
    """The tensors of every shard, each of which must hold just what the index says."""
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    names = sorted(set(weight_map.values()))
    stamps = _stamps(index.parent / file for file in names)
    for file in names:
        path = index.parent / file
        if not path.is_file():
            raise WeightsError(
                f"{index} names {file}, which does not exist.",
                fix="download or save the model again.",
            )
        shard = read_safetensors(path)
        differing = shard.keys() ^ {name for name, named in weight_map.items() if named == file}
        if differing:
            name = min(differing)
            says = "lacks" if name in weight_map else "also holds"
            raise WeightsError(
                f"{path} {says} {name}; {index.name} says otherwise.",
                fix="the shards may be of two checkpoints: download or save them again.",
            )
        tensors |= shard
        files |= dict.fromkeys(shard, path)
    return Checkpoint(index, tensors, files, stamps)


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    """The stamps of those files that are there."""
    return {file: _stamp(file) for file in files if file.is_file()}


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes when another file is put in this one's place, or it is written to."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor names and the file of each, which cannot lie outside the index's directory."""
    try:
        weight_map = read_json(index).get("weight_map")
    except ConfigError as error:
        raise WeightsError(error.problem, fix="download or save the model again.") from None
    files = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    if not all(isinstance(file, str) and _PLAIN_NAME.fullmatch(file) for file in files):
        raise WeightsError(
            f"{index}: expected a weight_map from tensor names to .safetensors files beside it.",
            fix="download or save the model again.",
        )
    assert isinstance(weight_map, dict)
    return weight_map


def belongs(file: str) -> bool:
    """Whether a file of a model directory is part of the model that a save replaces."""
    names = (CONFIG, GENERATION_CONFIG, WEIGHTS, INDEX, MANIFEST)
    return file in names or bool(_NUMBERED.fullmatch(file))
