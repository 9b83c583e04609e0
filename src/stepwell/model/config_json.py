"""config.json: read into a ModelConfig and written from one, by the tables in `families`.

A key that changes the arithmetic is honoured or refused, never dropped: every key is taken by a field,
allowed by its value, ignored by name, or an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from stepwell.errors import ConfigError, WeightsError
from stepwell.model.config import Family, ModelConfig, RopeScaling
from stepwell.model.families import (
    ACTIVATIONS,
    DEFAULT_ROPE_THETA,
    FAMILIES,
    IGNORED,
    NULLABLE,
    ROPE_KEYS,
    ROPE_REQUIRED,
    FamilyFormat,
)

_LARGEST_SIZE = 2**28
_MOST_LAYERS = 10_000
_MOST_PARAMETERS = 2**43  # 70 times the largest model there is; more would overflow a tensor's size


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError where it is no JSON object, naming the line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise WeightsError(
            f"{path} does not exist.", fix="name a directory that holds config.json and model.safetensors."
        ) from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, got a {type(values).__name__}.")
    return values


def read_config(
    values: Mapping[str, Any], *, where: str = "config.json", ignore_keys: Collection[str] = ()
) -> ModelConfig:
    """The ModelConfig that a family's config.json describes; missing keys are as in transformers.

    Raises ConfigError, naming key, value and file, for a family, key or value that stepwell does not
    compute. Keys in `ignore_keys` ("rope_scaling.factor" for one inside a group) count as missing.
    """
    family = _family_of(values, where)
    form = FAMILIES[family]
    keys = _Keys(_one_spelling(values, form, where), where, ignore_keys)
    fields: dict[str, Any] = {"family": family, **form.always}
    for key, ours in form.fields.items():
        most = _MOST_LAYERS if ours == ("num_layers",) else _LARGEST_SIZE
        fields |= dict.fromkeys(ours, _plain(keys, key, form.defaults[key], most))
    fields["activation"] = _activation(keys, form)
    fields |= _token_ids(keys, form)
    if form.rotary:
        fields |= _rope(keys, fields["context_length"])
    fields |= _windows(keys, form, fields["num_layers"])
    keys.finish(form.only)
    config = ModelConfig.parse(fields, where=where)
    _check_sizes(config, form, where)
    return config


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json that transformers, old and new, reads as this model; `dtype` like "float32".

    Raises ConfigError where the family's config.json cannot express a field.
    """
    values = _spell(config, dtype)
    differing = _differing(config, values)
    if differing:
        name = differing[0]
        able = [other for other in get_args(Family) if _expresses(other, config)]
        raise ConfigError(
            f"A {config.family} config.json cannot express {name}={getattr(config, name)!r}; "
            "transformers would build another model.",
            fix=f"use family={able[0]!r}." if able else f"change {name}; no family has this mixture.",
        )
    return values


class _Keys:
    """The keys of one JSON object. Each is to be taken before `finish`, which refuses the others."""

    def __init__(
        self, values: Mapping[str, Any], where: str, ignore: Collection[str], group: str = ""
    ) -> None:
        self.where, self._ignore, self._group = where, ignore, group
        self._values = {key: value for key, value in values.items() if group + key not in ignore}
        self._left = dict(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = None) -> Any:
        self._left.pop(key, None)
        return self._values.get(key, default)

    def inside(self, key: str) -> _Keys | None:
        """The keys of the object at `key`; None where it is missing, null or empty."""
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.refusal(key, value, "an object or null")
        return _Keys(value, self.where, self._ignore, f"{key}.") if value else None

    def size(self, key: str, default: int, *, least: int = 1, most: int = _LARGEST_SIZE) -> int:
        value = self.take(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.refusal(key, value, f"a whole number from {least} to {most}")
        return value

    def size_or_null(self, key: str, default: int | None) -> int | None:
        return None if self.take(key, default) is None else self.size(key, default or 0)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float) or not (value > 0 and math.isfinite(value)):
            raise self.refusal(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, value, "true or false")
        return value

    def refusal(self, key: str, value: Any, expected: str, fix: str = "") -> ConfigError:
        """The error for a value that does not do."""
        problem = f"{self.where}: {self._group}{key} is {_shown(value)}, expected {expected}."
        return ConfigError(problem, fix=fix)

    def finish(self, only: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises ConfigError for a key that nobody took and that is not known to be harmless."""
        for key, value in self._left.items():
            if key in only:
                if value not in only[key]:
                    accepted = " or ".join(_shown(accepted) for accepted in only[key])
                    raise self.refusal(key, value, f"{accepted} (stepwell computes nothing else)")
            elif key not in IGNORED or self._group:
                name = self._group + key
                raise ConfigError(
                    f"{self.where}: {name} = {_shown(value)} is not a key that stepwell knows; "
                    "it may change what the model computes.",
                    fix=f"if it does not, pass ignore_keys=({name!r},) to load_model.",
                )


def _family_of(values: Mapping[str, Any], where: str) -> Family:
    name = values.get("model_type")
    for family in FAMILIES:
        if name == family:
            return family
    raise ConfigError(
        f"{where}: model_type is {_shown(name)}; stepwell reads {', '.join(FAMILIES)}.",
        fix="use a model of one of these families.",
    )


def _one_spelling(values: Mapping[str, Any], form: FamilyFormat, where: str) -> dict[str, Any]:
    """`values` with each alias under the name that the tables use."""
    renamed = {key: value for key, value in values.items() if key not in form.aliases}
    for alias, key in form.aliases.items():
        if alias in values and renamed.setdefault(key, values[alias]) != values[alias]:
            raise ConfigError(
                f"{where}: {key} is {_shown(renamed[key])} but {alias} is {_shown(values[alias])}.",
                fix="keep the one that is right.",
            )
    return renamed


def _plain(keys: _Keys, key: str, default: Any, most: int) -> bool | float | int:
    """The value of a key that sets fields as it stands; 0 where it is to be derived."""
    if isinstance(default, bool):
        return keys.flag(key, default)
    if isinstance(default, float):
        return keys.number(key, default)
    if key in NULLABLE and keys.take(key, default) is None:
        return 0
    return keys.size(key, default, most=most)


def _activation(keys: _Keys, form: FamilyFormat) -> str:
    name = keys.take(form.activation_key, form.activation)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise keys.refusal(form.activation_key, name, "one of " + ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def _token_ids(keys: _Keys, form: FamilyFormat) -> dict[str, Any]:
    """bos_id, eos_id and pad_id. Old files say -1 where there is none."""
    defaults = {"bos": form.bos_id, "eos": form.eos_id, "pad": None}
    found: dict[str, Any] = {}
    for name, default in defaults.items():
        key = f"{name}_token_id"
        value = keys.take(key, default)
        several = value if isinstance(value, list) and name == "eos" else [value]
        if any(each is not None and type(each) is not int for each in several) or not several:
            raise keys.refusal(key, value, "a token id or null")
        ids = tuple(each for each in several if each is not None and each >= 0)
        found[f"{name}_id"] = (ids or None) if isinstance(value, list) else next(iter(ids), None)
    return found


def _rope(keys: _Keys, context_length: int) -> dict[str, Any]:
    """rope_theta and rope_scaling, from the old spelling, the new one, or both where they agree."""
    top = keys.number("rope_theta", DEFAULT_ROPE_THETA)
    groups = [keys.inside("rope_scaling"), keys.inside("rope_parameters")]
    found = []
    for group in filter(None, groups):
        theta = group.number("rope_theta", top)
        found.append((theta, _rope_scaling(group, context_length)))
        if "rope_theta" in keys and theta != top:
            raise group.refusal("rope_theta", theta, f"{top}, as rope_theta says outside")
    if len(set(found)) > 1:
        raise ConfigError(
            f"{keys.where}: rope_scaling and rope_parameters say different things.",
            fix="keep the one that is right.",
        )
    theta, scaling = found[0] if found else (top, None)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _rope_scaling(group: _Keys, context_length: int) -> RopeScaling | None:
    kind = group.take("rope_type", group.take("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise group.refusal("rope_type", kind, "one of " + ", ".join(ROPE_KEYS))
    fields: dict[str, Any] = {}
    for key, ours in ROPE_KEYS[kind].items():
        if key == "original_max_position_embeddings":
            fields[ours] = group.size(key, context_length)
        elif key == "truncate":
            fields[ours] = group.flag(key, True)
        elif group.take(key) is not None or key in ROPE_REQUIRED:
            fields[ours] = group.number(key)
    group.finish({"partial_rotary_factor": (None, 1.0)})
    if kind == "default":
        return None
    return RopeScaling.parse({"kind": kind, **fields}, where=group.where)


def _windows(keys: _Keys, form: FamilyFormat, num_layers: int) -> dict[str, Any]:
    """sliding_window and the layers that it holds for."""
    if form.windows == "none":
        return {}
    window = keys.size_or_null("sliding_window", form.window)
    first = 0
    if form.windows == "chosen layers":
        first = keys.size("max_window_layers", 28, least=0)
        window = window if keys.flag("use_sliding_window", False) else None
    usual = [window is not None and layer >= first for layer in range(num_layers)]
    slides = _layer_types(keys, num_layers) or usual
    impossible = any(slides) if window is None else form.windows == "every layer" and slides != usual
    if impossible:
        raise keys.refusal(
            "layer_types",
            keys.take("layer_types"),
            f"layers that fit sliding_window={_shown(window)}",
        )
    layers = tuple(layer for layer, sliding in enumerate(slides) if sliding)
    return {"sliding_window": window if layers else None, "sliding_layers": layers}


def _layer_types(keys: _Keys, num_layers: int) -> list[bool] | None:
    """Whether each layer slides, where the file says it layer by layer."""
    types = keys.take("layer_types")
    if types is None:
        return None
    kinds = {"full_attention": False, "sliding_attention": True}
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= set(kinds):
        raise keys.refusal("layer_types", types, f"{num_layers} of " + ", ".join(kinds))
    return [kinds[kind] for kind in types]


def _check_sizes(config: ModelConfig, form: FamilyFormat, where: str) -> None:
    if config.num_parameters > _MOST_PARAMETERS:
        raise ConfigError(
            f"{where} describes {config.num_parameters:,} parameters, more than any model has.",
            fix="correct its sizes.",
        )
    if form.heads_divide_width and config.width % config.num_heads:
        raise ConfigError(
            f"{where}: a width of {config.width} cannot be split into {config.num_heads} heads "
            f"({config.family} wants a multiple).",
        )


def _spell(config: ModelConfig, dtype: str) -> dict[str, Any]:
    form = FAMILIES[config.family]
    values: dict[str, Any] = {"architectures": [form.architecture], "model_type": config.family}
    values |= {key: getattr(config, ours[0]) for key, ours in form.fields.items()}
    spelled = [name for name, ours in ACTIVATIONS.items() if ours == config.activation]
    values[form.activation_key] = spelled[0]
    values |= {f"{name}_token_id": getattr(config, f"{name}_id") for name in ("bos", "eos", "pad")}
    if form.rotary:
        values |= _spell_rope(config)
    values |= _spell_windows(config, form)
    # transformers 5 reads dtype and rope_parameters; its predecessors the older words beside them.
    return {**values, "dtype": dtype, "torch_dtype": dtype}


def _spell_rope(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    kind = "default" if scaling is None else scaling.kind
    inner = {key: getattr(scaling, ours) for key, ours in ROPE_KEYS[kind].items()}
    inner = {"rope_type": kind, **{key: value for key, value in inner.items() if value is not None}}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else inner,
        "rope_parameters": {**inner, "rope_theta": config.rope_theta},
    }


def _spell_windows(config: ModelConfig, form: FamilyFormat) -> dict[str, Any]:
    window, sliding = config.sliding_window, config.sliding_layers
    if form.windows == "none":
        return {}
    if form.windows == "every layer":
        return {"sliding_window": window}
    last = tuple(range(config.num_layers - len(sliding), config.num_layers))
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": last[0] if sliding == last and last else config.num_layers,
        "layer_types": [
            "sliding_attention" if layer in sliding else "full_attention"
            for layer in range(config.num_layers)
        ],
    }


def _differing(config: ModelConfig, values: Mapping[str, Any]) -> list[str]:
    """Fields that would read back otherwise; what a rope scaling's kind does not use is no matter."""
    back = read_config(values, where=f"a {config.family} config.json")
    wanted, scaling = config, config.rope_scaling
    if scaling is not None:
        used = {ours: getattr(scaling, ours) for ours in ROPE_KEYS[scaling.kind].values()}
        wanted = config.changed(rope_scaling=RopeScaling(kind=scaling.kind, **used))
    return [name for name in ModelConfig.model_fields if getattr(back, name) != getattr(wanted, name)]


def _expresses(family: Family, config: ModelConfig) -> bool:
    candidate = config.changed(family=family)
    try:
        return not _differing(candidate, _spell(candidate, "float32"))
    except ConfigError:
        return False


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _shown(value: Any) -> str:
    """A value as JSON spells it, cut short."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
