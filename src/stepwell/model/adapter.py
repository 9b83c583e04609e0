"""Adapters in PEFT's format: low-rank changes of a model's matrices, beside the model.

    adapter_config.json          what kind it is, and of which rank
    adapter_model.safetensors    A [rank, in] and B [out, rank] of each matrix; rows of new tokens

Owns this format both ways, and the merging: a matrix becomes itself + alpha / rank * B A. How the
numbers are learnt is the business of training. Source: Hu et al. 2021; PEFT's file names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from stepwell.config import write_json
from stepwell.errors import ConfigError, WeightsError, suggest
from stepwell.model.json_keys import read_json
from stepwell.model.names import StoredTensor, stored_tensors
from stepwell.model.rows import ROWS, with_rows
from stepwell.model.tensor_files import read_safetensors, write_safetensors
from stepwell.model.transformer import Transformer

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
MODULE: Final = re.compile(r"[A-Za-z0-9_.]+")
NEW_ROWS: Final = ".token_adapter.trainable_tokens_delta"

HONOURED: Final = frozenset(
    {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "trainable_token_indices"}
)
HARMLESS: Final = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "revision"),
        *("base_model_name_or_path", "target_modules", "exclude_modules", "modules_to_save"),
        *("layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out"),
        *("megatron_core", "qalora_group_size", "ensure_weight_tying", "eva_config"),
    }
)
"""Keys of adapter_config.json that say what the tensors' names and shapes say, or nothing of them.

Any other key, where it is set, may mean another arithmetic, and is refused.
"""

PLAIN: Final[Mapping[str, tuple[Any, ...]]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""Values with which the base stays as it is, and adapters are all that there is."""


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix [out, in]: scale * b [out, rank] a [rank, in]."""

    a: Tensor
    b: Tensor
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """The matrix with it, computed in float32, in the matrix's own format."""
        a, b = (each.to(weight.device, torch.float32) for each in (self.a, self.b))
        change = b @ a
        return (weight.float() + self.scale * change).to(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """Changes of a model by its parameters' names.

    matrices: what is added. rows: token ids, and the rows in the place of theirs. wholes: what
    takes the place of a parameter.
    """

    matrices: Mapping[str, LowRank]
    rows: Mapping[str, tuple[Tensor, Tensor]]
    wholes: Mapping[str, Tensor]


def merge_adapter(model: Transformer, directory: str | Path) -> Transformer:
    """A model with the changes of a PEFT adapter (LoRA) merged into it; `model` stays as it is.

    It has rows for the tokens that the adapter adds. Weights that do not change are shared.

    Raises WeightsError where the adapter does not fit the model or is damaged, ConfigError where
    its adapter_config.json asks for what is not computed here.
    """
    directory = Path(directory)
    values, tensors = _read_config(directory), _read_tensors(directory)
    size = _num_tokens(values, tensors, model)
    grown = with_rows(model, model.config.changed(vocab_size=size))
    reading = _Reading(directory / ADAPTER_WEIGHTS, values, tensors, _stored(grown))
    return merged(grown, Adapter(reading.matrices(), reading.rows(), reading.wholes()))


def merged(model: Transformer, adapter: Adapter) -> Transformer:
    """A model with the changes merged into it."""
    state = {name: weight.detach() for name, weight in model.state_dict().items()}
    state |= {name: whole.to(state[name]) for name, whole in adapter.wholes.items()}
    for name, change in adapter.matrices.items():
        state[name] = change.added_to(state[name])
    for name, (ids, rows) in adapter.rows.items():
        state[name] = state[name].index_copy(0, ids.to(state[name].device), rows.to(state[name]))
    return assembled(model, state)


def assembled(model: Transformer, state: Mapping[str, Tensor]) -> Transformer:
    """A plain model of the same shape with these parameters, in eval mode."""
    with torch.device("meta"):
        made = Transformer(model.config)
    made.load_state_dict(state, assign=True)
    return made.eval()


# -- reading ---------------------------------------------------------------------------------------


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / ADAPTER_WEIGHTS
    if not path.exists() and (directory / "adapter_model.bin").exists():
        raise WeightsError(
            f"{directory} holds adapter_model.bin, a pickle that could run code.",
            fix="save it again with PEFT: save_pretrained(directory, safe_serialization=True).",
        )
    return read_safetensors(path)


def _num_tokens(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer
) -> int:
    """The tokens of the model and those that the adapter adds to them."""
    size = model.config.vocab_size
    listed = values.get("trainable_token_indices")
    for ids in listed.values() if isinstance(listed, dict) else [listed]:
        if isinstance(ids, list):  # no id leaves out one before it, so that none can be huge
            size = max([size, *(i + 1 for i in ids if type(i) is int and i < size + len(ids))])
    wholes = {
        module: stored for module, stored in _stored(model).items() if stored.parts[0] in ROWS
    }
    held = [tensors.get(f"{PREFIX}{module}.weight") for module in wholes]
    return max([size, *(len(each) for each in held if each is not None and each.dim() == 2)])


class _Reading:
    """The tensors of one adapter file, of which each must find its place."""

    def __init__(
        self,
        path: Path,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        known: Mapping[str, StoredTensor],
    ) -> None:
        self.path, self.values, self.tensors, self.known = path, values, tensors, known
        self.names = {key: key.removeprefix(PREFIX) for key in tensors}

    def matrices(self) -> dict[str, LowRank]:
        """The changes of matrices, those of a fused one apart again."""
        found: dict[str, LowRank] = {}
        for key, name in self.names.items():
            if not name.endswith(".lora_A.weight"):
                continue
            module = name.removesuffix(".lora_A.weight")
            stored = self._at(module, key)
            a, b = self.tensors[key], self._partner(key)
            rank = _in_pattern(self.values, "rank_pattern", module, "r")
            self._check(key, a, [rank, stored.shape[0 if stored.transposed else 1]])
            self._check(f"{module}.lora_B.weight", b, [sum(stored.num_rows), rank])
            scale = self._scale(module, rank)
            pieces = torch.split(b, list(stored.num_rows))
            for part, piece in zip(stored.parts, pieces, strict=True):
                found[part] = LowRank(a, piece, scale)
        return found

    def rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The rows of single tokens."""
        found = {}
        listed = self.values.get("trainable_token_indices") or {}
        for key, name in self.names.items():
            if name.endswith(NEW_ROWS):
                module = name.removesuffix(NEW_ROWS)
                stored, last = self._at(module, key), module.rpartition(".")[2]
                ids = listed.get(last) if isinstance(listed, Mapping) else listed
                ids = ids if isinstance(ids, list) else []
                self._check(key, self.tensors[key], [len(ids), stored.shape[1]])
                if any(type(each) is not int or not 0 <= each < stored.shape[0] for each in ids):
                    raise self._foreign(f"changes tokens that follow on none of the model's: {ids}")
                found[stored.parts[0]] = (torch.tensor(ids), self.tensors[key])
        return found

    def wholes(self) -> dict[str, Tensor]:
        """The tensors that are there as a whole. Raises WeightsError for one that has no place."""
        found: dict[str, Tensor] = {}
        for key, name in self.names.items():
            if name.endswith((".lora_A.weight", ".lora_B.weight", NEW_ROWS)):
                continue
            stored = self._at(name.removesuffix(".weight"), key)
            self._check(key, self.tensors[key], list(stored.shape))
            found |= stored.split(self.tensors[key])
        return found

    def _at(self, module: str, key: str) -> StoredTensor:
        stored = self.known.get(module)
        if stored is None:
            hint = suggest(_short(module), map(_short, self.known))
            raise self._foreign(f"changes {key}, which the model lacks", hint)
        return stored

    def _partner(self, key: str) -> Tensor:
        name = key.replace(".lora_A.", ".lora_B.")
        if name not in self.tensors:
            raise self._foreign(f"lacks {name}")
        return self.tensors[name]

    def _check(self, key: str, tensor: Tensor, expected: list[int]) -> None:
        if list(tensor.shape) != expected:
            raise self._foreign(f"holds {key} {list(tensor.shape)}, expected {expected}")

    def _scale(self, module: str, rank: int) -> float:
        alpha = _in_pattern(self.values, "alpha_pattern", module, "lora_alpha")
        return float(alpha) / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def _foreign(self, problem: str, hint: str = "") -> WeightsError:
        return WeightsError(
            f"{self.path} {problem}. {hint}".rstrip(), fix="give the base that it was trained on."
        )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        raise WeightsError(
            f"{directory} holds no {ADAPTER_CONFIG}.", fix="give the directory of a PEFT adapter."
        )
    values = read_json(path)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{path}: peft_type is {kind!r}; stepwell merges LORA.")
    known = HONOURED | HARMLESS | PLAIN.keys()
    odd = next((key for key, value in values.items() if value and key not in known), None)
    odd = odd or next(
        (key for key in PLAIN if key in values and values[key] not in PLAIN[key]), None
    )
    if odd is not None:
        raise ConfigError(
            f"{path}: {odd} is {values[odd]!r}, which stepwell does not compute.",
            fix="merge it with PEFT (merge_and_unload) and use the merged model.",
        )
    for key, least in (("r", 1), ("lora_alpha", 0)):
        if type(values.get(key)) not in (int, float) or not values[key] >= least:
            raise ConfigError(f"{path}: {key} is {values.get(key)!r}, expected a number.")
    for key in ("rank_pattern", "alpha_pattern"):
        for module, value in (values.get(key) or {}).items():
            if not MODULE.fullmatch(module) or type(value) not in (int, float):
                raise ConfigError(
                    f"{path}: {key} says {module!r}: {value!r}, expected a module and a number."
                )
    return values


def _in_pattern(values: Mapping[str, Any], pattern: str, module: str, default: str) -> Any:
    """A module's own rank or alpha, by the first name whose end it has; or that of all."""
    patterns = values.get(pattern) or {}
    ends = (key for key in patterns if re.fullmatch(rf"(.*\.)?({re.escape(key)})", module))
    found = next(ends, None)
    return values[default] if found is None else patterns[found]


def _stored(model: Transformer) -> dict[str, StoredTensor]:
    """The matrices of a checkpoint by the names of their modules."""
    stored = stored_tensors(model.config, model.state_dict())
    return {
        tensor.name.removesuffix(".weight"): tensor
        for tensor in stored
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2
    }


# -- writing ---------------------------------------------------------------------------------------


def write_adapter(
    directory: Path,
    plain: Transformer,
    adapter: Adapter,
    *,
    base: str,
    rank: int,
    alpha: float,
    dropout: float,
) -> None:
    """Writes an adapter of such a model as PEFT loads it; all its matrices have this rank.

    Matrices that the family keeps as one (GPT-2's c_attn) get one adapter of their ranks together:
    their A below each other, their B on a diagonal. That is the same change.
    """
    tensors: dict[str, Tensor] = {}
    changed: dict[str, int] = {}
    for module, stored in _stored(plain).items():
        adapted = [part for part in stored.parts if part in adapter.matrices]
        if adapted:
            a, b = _joined(stored, adapter.matrices)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
            changed[_short(module)] = len(adapted)
        if stored.parts[0] in adapter.rows:
            tensors[f"{PREFIX}{module}{NEW_ROWS}"] = adapter.rows[stored.parts[0]][1]
    tokens = {
        module.rpartition(".")[2]: adapter.rows[stored.parts[0]][0].tolist()
        for module, stored in _stored(plain).items()
        if stored.parts[0] in adapter.rows
    }
    fused = {module: count for module, count in changed.items() if count > 1}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": any(stored.transposed for stored in _stored(plain).values()),
        "target_modules": sorted(changed),
        "rank_pattern": {module: count * rank for module, count in fused.items()},
        "alpha_pattern": {module: count * alpha for module, count in fused.items()},
        "trainable_token_indices": tokens or None,
        "inference_mode": True,
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_safetensors(directory / ADAPTER_WEIGHTS, shapes, torch.float32, tensors.__getitem__)
    write_json(directory / ADAPTER_CONFIG, values)


def _joined(stored: StoredTensor, matrices: Mapping[str, LowRank]) -> tuple[Tensor, Tensor]:
    """A and B of a stored matrix, of those of its parts that are adapted."""
    pairs = zip(stored.parts, stored.num_rows, strict=True)
    blocks = [
        matrices[part].b if part in matrices else torch.zeros(rows, 0) for part, rows in pairs
    ]
    a = torch.cat([matrices[part].a for part in stored.parts if part in matrices])
    diagonal: Tensor = torch.block_diag(*(block.to(a) for block in blocks))  # type: ignore[no-untyped-call]
    return a, diagonal


def _short(module: str) -> str:
    """What names a module in every layer: `self_attn.q_proj`."""
    return ".".join(module.split(".")[-2:])
