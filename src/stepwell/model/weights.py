"""Model directories: `load_model` and `save_model`.

A directory holds config.json, generation_config.json and model.safetensors, or shards of it with an
index, as transformers writes and reads them. Owns the way between such files and a Transformer;
which files those are is in `directory`, the families' spellings in `config_json` and `names`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from stepwell.config import write_json
from stepwell.device import WeightFormat, parse_dtype, pick_device
from stepwell.errors import ConfigError, WeightsError, suggest
from stepwell.model.config import ModelConfig
from stepwell.model.config_json import read_config, read_dtype, write_config
from stepwell.model.directory import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    WEIGHTS,
    Checkpoint,
    belongs,
    open_checkpoint,
    read_config_file,
)
from stepwell.model.hub import locate as locate
from stepwell.model.json_keys import read_json
from stepwell.model.memory import WeightMemory, pays_to_copy
from stepwell.model.names import HEAD, REDUNDANT, StoredTensor, stored_tensors
from stepwell.model.quantize import ROUNDINGS, QuantizedLinear, Rounding
from stepwell.model.quantize4 import FourBitLinear, bitsandbytes
from stepwell.model.tensor_files import write_safetensors
from stepwell.model.transformer import Transformer
from stepwell.storage.sealed import seal
from stepwell.storage.staging import staged
from stepwell.storage.verified import Verify, check_files

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_SHAPED_BY: Mapping[str, tuple[str, ...]] = {
    "embed": ("vocab_size", "width"),
    "head": ("vocab_size", "width"),
    "position_embed": ("context_length", "width"),
    "q_proj": ("num_heads", "head_dim", "width"),
    "k_proj": ("num_kv_heads", "head_dim", "width"),
    "v_proj": ("num_kv_heads", "head_dim", "width"),
    "o_proj": ("num_heads", "head_dim", "width"),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "gate": ("mlp_width", "width"),
    "up": ("mlp_width", "width"),
    "down": ("mlp_width", "width"),
}


def load_model(
    path_or_id: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weights: WeightFormat | None = None,
    mmap: bool | None = None,
    verify: Verify = "once",
    ignore_keys: Collection[str] = (),
) -> Transformer:
    """The model of a directory or Hub id, in eval mode.

    dtype: None keeps what config.json names, or else what is stored.
    weights: "int8" and "int4" round the matrices to 8 and 4 bits, one after the other as they are
    read; see `quantize_weights`. "bf16" is dtype bfloat16, and so is the rest of a model in 4 bits.
    mmap: True lets the weights stay pages of the file, which processes share, where dtype and
    layout allow it (GPT-2's are stored transposed and are copied). False copies all, onto huge
    pages where there are any: decoding is then 10 to 20% faster, and the file may be overwritten.
    None, on a CPU, copies where there are huge pages and half of the free memory is enough.
    verify: a directory that was saved here is held against its manifest.json, large files once and
    again when they have changed, or "always". One from elsewhere has none: header, shapes and
    lengths are all that is checked.
    ignore_keys: keys of config.json that you know not to change what the model computes.

    Raises WeightsError for files, ConfigError for config.json, DeviceError for the device.
    """
    directory, target = locate(path_or_id), pick_device(device)
    values, where = read_config_file(directory), str(directory / CONFIG)
    check_files(directory, belongs, WeightsError, verify)
    config = read_config(values, where=where, ignore_keys=ignore_keys)
    wanted = _dtype_of(weights, parse_dtype(dtype)) or read_dtype(values, where=where)
    if weights == "int4":
        bitsandbytes(target)
    rounding = None if weights is None else ROUNDINGS.get(weights)
    checkpoint = open_checkpoint(directory)
    return assemble(config, checkpoint, dtype=wanted, device=target, mmap=mmap, rounding=rounding)


def save_model(
    model: Transformer,
    directory: str | Path,
    *,
    max_shard_bytes: int = 5 * 2**30,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Write the model as a directory that AutoModelForCausalLM loads, replacing one that is there.

    Other files of the directory, such as tokenizer.json, stay. Where it fails, nothing changes.
    dtype: the format to store; None keeps the model's.

    Raises ConfigError, before anything is written, where the family's config.json cannot express
    the model; WeightsError where a parameter has no name in it or the disk does not take the files.
    """
    _refuse_quantized(model)
    directory, kept = Path(directory), parse_dtype(dtype) or model.dtype
    values = write_config(model.config, str(kept).removeprefix("torch."))
    parameters = model.state_dict()
    stored = stored_tensors(model.config, parameters)
    _refuse_unnamed(stored, parameters, model.config)
    ids = _generation_config(directory, values)
    shards = _shards(stored, max_shard_bytes // kept.itemsize)
    try:
        with staged(directory, marker=CONFIG, belongs=belongs) as stage:
            _write_shards(stage, shards, parameters, kept)
            write_json(stage / CONFIG, values)
            write_json(stage / GENERATION_CONFIG, ids)
            seal(stage)
    except OSError as error:
        raise WeightsError(
            f"{directory} could not be written: {error.strerror or error}.",
            fix="free disk space or choose another directory; what was there before is unchanged.",
        ) from error


def _dtype_of(weights: WeightFormat | None, dtype: torch.dtype | None) -> torch.dtype | None:
    """The number format that the two ask for together. Raises ConfigError where they disagree."""
    if weights is not None and weights not in get_args(WeightFormat):
        raise ConfigError(
            f"weights is {weights!r}. {suggest(weights, get_args(WeightFormat))}",
            fix="leave it out to keep the weights as they are stored.",
        )
    if weights not in ("bf16", "int4"):
        return dtype
    if dtype not in (None, torch.bfloat16):
        raise ConfigError(f"weights is {weights!r}, but dtype is {_word(dtype)}; give one of them.")
    return torch.bfloat16


def assemble(
    config: ModelConfig,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    mmap: bool | None,
    rounding: Rounding | None = None,
) -> Transformer:
    """A Transformer, in eval mode, whose parameters are the checkpoint's tensors.

    mmap is that of `load_model`; only files can be read without it.
    rounding: what becomes of the matrices; they are then never all in memory as they are stored.

    Raises WeightsError where one is missing, left over, or of another shape or kind.
    """
    if checkpoint.num_layers != config.num_layers:
        raise WeightsError(
            f"{checkpoint.source} holds {checkpoint.num_layers} layers, "
            f"config.json says {config.num_layers}.",
            fix="config.json may belong to another checkpoint.",
        )
    with torch.device("meta"):
        model = Transformer(config)
    names = _match(config, checkpoint, stored_tensors(config, model.state_dict()))
    first = next(iter(names.values()))
    dtype = dtype or checkpoint.tensors[first].dtype
    settle = Settling(dtype, device, mapped=_stays_mapped(checkpoint, mmap, dtype, device))
    if rounding is not None:
        _round(model, rounding, checkpoint, names, settle)
    missing = {part for part, parameter in model.named_parameters() if parameter.is_meta}
    state: dict[str, Tensor] = {}
    # The largest first: what is read beside its copy comes on top when most has been copied.
    for stored, name in sorted(names.items(), key=lambda pair: -prod(pair[0].shape)):
        if missing.issuperset(stored.parts):
            read = checkpoint.tensors[name] if settle.mapped else checkpoint.read_again(name)
            for part, piece in stored.split(read).items():
                state[part] = settle(piece)
    model.load_state_dict(state, assign=True, strict=rounding is None)
    return model.eval().requires_grad_(rounding is None)


def _stays_mapped(
    checkpoint: Checkpoint, mmap: bool | None, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether weights are to stay pages of their file, or are read from there at most."""
    if mmap is not None or device.type != "cpu":
        return mmap is not False
    count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    return not pays_to_copy(count * dtype.itemsize)


class Settling:
    """Puts tensors of a checkpoint where and as they are to be: contiguous, of a format, somewhere.

    mapped: one that is so already stays as it is, a view of its file. All others are copied.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, *, mapped: bool) -> None:
        self.dtype, self.device, self.mapped = dtype, device, mapped
        self.memory = WeightMemory(device)

    def __call__(self, piece: Tensor) -> Tensor:
        """The tensor itself, or its copy."""
        settled = piece.device == self.device and piece.dtype == self.dtype
        if self.mapped and settled and piece.is_contiguous():
            return piece
        return self.memory.copy(piece, self.dtype)


def _round(
    model: Transformer,
    rounding: Rounding,
    checkpoint: Checkpoint,
    names: Mapping[StoredTensor, str],
    settle: Settling,
) -> None:
    """Puts the matrices into the model, rounded; one at a time is in memory as it is stored."""
    modules = rounding.matrices(model)
    for stored, name in names.items():
        if modules.keys() >= set(stored.parts):
            for part, piece in stored.split(checkpoint.read_again(name)).items():
                exact = piece.to(settle.device, settle.dtype).contiguous()
                rounding.put(model, modules[part], exact, settle.memory)


def _match(
    config: ModelConfig, checkpoint: Checkpoint, wanted: list[StoredTensor]
) -> dict[StoredTensor, str]:
    """The name under which the checkpoint holds each wanted tensor, in order."""
    names = {
        stored: name
        for stored in wanted
        for name in (stored.name, stored.bare_name)
        if name in checkpoint.tensors
    }
    missing = [stored.name for stored in wanted if stored not in names]
    if missing:
        more = f" and {len(missing) - 1} other tensors" if len(missing) > 1 else ""
        tied = '"tie_word_embeddings": true in config.json would use the embedding in its place.'
        other = "config.json may belong to another checkpoint, or the file is incomplete."
        raise WeightsError(
            f"{checkpoint.source} lacks {missing[0]}{more}.",
            fix=tied if missing == [HEAD] else other,
        )
    for stored, name in names.items():
        _check_tensor(config, checkpoint, stored, name)
    _refuse_leftovers(config, checkpoint, list(names.values()))
    return names


def _check_tensor(
    config: ModelConfig, checkpoint: Checkpoint, stored: StoredTensor, name: str
) -> None:
    tensor, file = checkpoint.tensors[name], checkpoint.files[name]
    if tensor.shape != stored.shape:
        fields = _SHAPED_BY.get(stored.parts[-1].split(".")[-2], ("width",))
        sizes = ", ".join(f"{field}={getattr(config, field)}" for field in fields)
        raise WeightsError(
            f"{file}: {name} is {list(tensor.shape)}, expected {list(stored.shape)} ({sizes}).",
            fix="config.json may belong to another checkpoint.",
        )
    if tensor.dtype not in _FLOATS:
        raise WeightsError(
            f"{file}: {name} is {_word(tensor.dtype)}, expected {', '.join(map(_word, _FLOATS))}.",
            fix="use the checkpoint as it was before quantization.",
        )


def _refuse_leftovers(config: ModelConfig, checkpoint: Checkpoint, used: list[str]) -> None:
    """Raises WeightsError for a tensor that no parameter takes and that follows from none."""
    for name in sorted(checkpoint.tensors.keys() - set(used)):
        file, embedding = checkpoint.files[name], used[0]
        if REDUNDANT.fullmatch(name):
            continue
        if name != HEAD or not config.tie_embeddings:
            raise WeightsError(
                f"{file} holds {name}, which this {config.family} config.json has no use for.",
                fix="config.json may belong to another checkpoint, or lack a bias or a norm.",
            )
        if not _equal(checkpoint.tensors[name], checkpoint.tensors[embedding]):
            raise WeightsError(
                f"{file}: {name} differs from {embedding}, which config.json says it shares.",
                fix='set "tie_word_embeddings": false in config.json.',
            )


def _refuse_quantized(model: Transformer) -> None:
    bits = {QuantizedLinear: 8, FourBitLinear: 4}
    for module in model.modules():
        if type(module) in bits:
            number = bits[type(module)]
            raise WeightsError(
                f"The model has {number}-bit weights, which no family's checkpoint holds.",
                fix=f"save the model that they were made from; load it with weights='int{number}'.",
            )


def _refuse_unnamed(
    stored: list[StoredTensor], parameters: Mapping[str, Tensor], config: ModelConfig
) -> None:
    unnamed = parameters.keys() - {part for tensor in stored for part in tensor.parts}
    if unnamed:
        raise WeightsError(
            f"A {config.family} checkpoint has no name for {min(unnamed)} ({len(unnamed)} such).",
            fix="merge or remove what was added to the model before saving it.",
        )


def _shards(stored: list[StoredTensor], most: int) -> list[list[StoredTensor]]:
    """The tensors in order, cut into runs of at most `most` elements, one tensor at least."""
    shards: list[list[StoredTensor]] = []
    filled = 0
    for tensor in stored:
        if not shards or filled + prod(tensor.shape) > most:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += prod(tensor.shape)
    return shards


def _write_shards(
    stage: Path,
    shards: list[list[StoredTensor]],
    parameters: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    if len(shards) == 1:
        _write_shard(stage / WEIGHTS, shards[0], parameters, dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(stage / file, shard, parameters, dtype)
        weight_map |= {tensor.name: file for tensor in shard}
    size = sum(prod(tensor.shape) for shard in shards for tensor in shard) * dtype.itemsize
    write_json(stage / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write_shard(
    path: Path, shard: list[StoredTensor], parameters: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    by_name = {tensor.name: tensor for tensor in shard}
    shapes = {name: tensor.shape for name, tensor in by_name.items()}
    write_safetensors(path, shapes, dtype, lambda name: by_name[name].join(parameters))


def _generation_config(directory: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The special ids of `values`, and what the directory's generation_config.json says besides."""
    path, keys = directory / GENERATION_CONFIG, ("bos_token_id", "eos_token_id", "pad_token_id")
    try:
        present = read_json(path) if path.is_file() else {}
    except ConfigError:
        present = {}
    kept = {key: value for key, value in present.items() if key not in keys}
    return {**{key: values[key] for key in keys if values[key] is not None}, **kept}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
