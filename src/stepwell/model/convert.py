"""PyTorch's own files (.pt, .bin) into model directories, without running what they hold.

Owns reading a foreign state dict. What comes out is checked like any other checkpoint.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepwell.config import write_atomically
from stepwell.errors import WeightsError
from stepwell.model.config_json import read_config
from stepwell.model.directory import CONFIG, Checkpoint
from stepwell.model.json_keys import read_json
from stepwell.model.weights import assemble, save_model
from stepwell.storage.sealed import resealed

_INSIDE = ("model", "state_dict", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "generation_info.json",
)
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load has been seen to raise for damaged files."""


def convert_pt(
    source: str | Path, config: str | Path, out: str | Path, *, ignore_keys: Collection[str] = ()
) -> None:
    """Write a .pt state dict, in transformers' names, as a model directory.

    source: a state dict, bare or under "model", "state_dict" or "model_state_dict". It is read with
    weights_only, so nothing that it holds is run.
    config: config.json, or a directory with one. Tokenizer files and generation_info.json beside it
    or beside the source are copied.

    Raises WeightsError for a file that is damaged or holds anything but tensors.
    """
    source, config, out = Path(source), Path(config), Path(out)
    config = config / CONFIG if config.is_dir() else config
    shape = read_config(read_json(config), where=str(config), ignore_keys=ignore_keys)
    tensors = _unwrapped(_state_dict(_load(source), source))
    checkpoint = Checkpoint(source, tensors, dict.fromkeys(tensors, source))
    model = assemble(shape, checkpoint, dtype=None, device=torch.device("cpu"), mmap=True)
    save_model(model, out)
    with resealed(out, _COMPANIONS):
        for name in _COMPANIONS:
            beside = [folder / name for folder in (config.parent, source.parent)]
            for path in [path for path in beside if path.is_file() and path.parent != out][:1]:
                write_atomically(out / name, path.read_bytes())


def _load(source: Path) -> Any:
    try:
        mapped = zipfile.is_zipfile(source)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise WeightsError(f"{source} does not exist.", fix="check the path.") from None
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{source} holds more than tensors or is damaged; none of it was run.{_culprit(error)}",
            fix="save model.state_dict() alone, where the model was made.",
        ) from None
    except _UNREADABLE as error:
        raise WeightsError(
            f"{source} is not a whole PyTorch file: {_line(error)}",
            fix="download or save it again.",
        ) from None


def _state_dict(loaded: Any, source: Path) -> Mapping[str, Tensor]:
    """The names and tensors of what was loaded, taken out of the wrapping that trainers use."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[k] for k in _INSIDE if isinstance(loaded.get(k), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
        raise WeightsError(f"{source} is of type {kind}, expected names and tensors.")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{source} holds {name!r}: {type(value).__name__}, expected names and tensors.",
                fix=f"save the state dict alone, or under one of {', '.join(_INSIDE)}.",
            )
    return loaded


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that a wrapper put before all names."""
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): each for name, each in tensors.items()})
    return dict(tensors)


def _culprit(error: pickle.UnpicklingError) -> str:
    """What torch stumbled on, without its advice to load the file unsafely."""
    found = re.search(r"unsupported [^\n]*", str(error), re.IGNORECASE)
    return f" It asks for {found[0]}" if found else ""


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
