"""config.json: read into a ModelConfig and written from one, by the tables in `families`.

A key that changes the arithmetic is honoured or refused, never dropped: every key is taken by a
field, allowed by its value, ignored by name, or an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

import torch

from stepwell.device import parse_dtype
from stepwell.errors import ConfigError
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
from stepwell.model.json_keys import LARGEST_SIZE, Keys, shown

_MOST_LAYERS = 10_000
_MOST_PARAMETERS = 2**43  # more than any model has; far more would overflow a tensor's size


def read_config(
    values: Mapping[str, Any], *, where: str = "config.json", ignore_keys: Collection[str] = ()
) -> ModelConfig:
    """The ModelConfig that a family's config.json describes; missing keys are as in transformers.

    Raises ConfigError, naming key, value and file, for a family, key or value that stepwell does
    not compute. Keys in `ignore_keys` count as missing; "rope_scaling.factor" is one in a group.
    """
    family = _family_of(values, where)
    form = FAMILIES[family]
    keys = Keys(_one_spelling(values, form, where), where, ignore_keys)
    fields: dict[str, Any] = {"family": family, **form.always}
    for key, ours in form.fields.items():
        most = _MOST_LAYERS if ours == ("num_layers",) else LARGEST_SIZE
        fields |= dict.fromkeys(ours, _plain(keys, key, form.defaults[key], most))
    fields["activation"] = _activation(keys, form)
    fields |= _token_ids(keys, form)
    if form.rotary:
        fields |= _rope(keys, fields["context_length"])
    fields |= _windows(keys, form, fields["num_layers"])
    keys.finish(form.only, IGNORED)
    config = ModelConfig.parse(fields, where=where)
    _check_sizes(config, form, where)
    return config


def read_dtype(values: Mapping[str, Any], *, where: str = "config.json") -> torch.dtype | None:
    """The format that config.json names, as dtype or torch_dtype; None where it names none."""
    name = values.get("dtype", values.get("torch_dtype"))
    try:
        return parse_dtype(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.problem}", fix="choose one by dtype=.") from None


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
            f"A {config.family} config.json cannot express {name}={getattr(config, name)!r} beside "
            "the other fields; transformers would build another model.",
            fix=f"use family={able[0]!r}." if able else f"change {name}: no family has it so.",
        )
    return values


def _family_of(values: Mapping[str, Any], where: str) -> Family:
    name = values.get("model_type")
    for family in FAMILIES:
        if name == family:
            return family
    raise ConfigError(
        f"{where}: model_type is {shown(name)}; stepwell reads {', '.join(FAMILIES)}.",
        fix="use a model of one of these families.",
    )


def _one_spelling(values: Mapping[str, Any], form: FamilyFormat, where: str) -> dict[str, Any]:
    """`values` with each alias under the name that the tables use."""
    renamed = {key: value for key, value in values.items() if key not in form.aliases}
    for alias, key in form.aliases.items():
        if alias in values and renamed.setdefault(key, values[alias]) != values[alias]:
            raise ConfigError(
                f"{where}: {key} is {shown(renamed[key])} but {alias} is {shown(values[alias])}.",
                fix="keep the one that is right.",
            )
    return renamed


def _plain(keys: Keys, key: str, default: Any, most: int) -> bool | float | int:
    """The value of a key that sets fields as it stands; 0 where it is to be derived."""
    if isinstance(default, bool):
        return keys.flag(key, default)
    if isinstance(default, float):
        return keys.number(key, default)
    if key in NULLABLE and keys.take(key, default) is None:
        return 0
    return keys.size(key, default, most=most)


def _activation(keys: Keys, form: FamilyFormat) -> str:
    name = keys.take(form.activation_key, form.activation)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise keys.refusal(form.activation_key, name, "one of " + ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def _token_ids(keys: Keys, form: FamilyFormat) -> dict[str, Any]:
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


def _rope(keys: Keys, context_length: int) -> dict[str, Any]:
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


def _rope_scaling(group: Keys, context_length: int) -> RopeScaling | None:
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


def _windows(keys: Keys, form: FamilyFormat, num_layers: int) -> dict[str, Any]:
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
    if slides != usual and (window is None or form.windows == "every layer"):
        expected = f"types that fit sliding_window={shown(window)}"
        raise keys.refusal("layer_types", keys.take("layer_types"), expected)
    layers = tuple(layer for layer, sliding in enumerate(slides) if sliding)
    return {"sliding_window": window if layers else None, "sliding_layers": layers}


def _layer_types(keys: Keys, num_layers: int) -> list[bool] | None:
    """Whether each layer slides, where the file says it layer by layer."""
    types = keys.take("layer_types")
    if types is None:
        return None
    kinds = ("full_attention", "sliding_attention")
    whole = isinstance(types, list) and len(types) == num_layers
    if not whole or any(kind not in kinds for kind in types):
        raise keys.refusal("layer_types", types, f"{num_layers} of " + ", ".join(kinds))
    return [kind == "sliding_attention" for kind in types]


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
    names = (form.activation, *ACTIVATIONS)
    values[form.activation_key] = next(n for n in names if ACTIVATIONS[n] == config.activation)
    several = isinstance(config.eos_id, tuple)
    eos = list(config.eos_ids) if several else config.eos_id
    values |= {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}
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
    """Fields that would read back otherwise, but for what a rope scaling's kind does not use."""
    back = read_config(values, where=f"a {config.family} config.json")
    wanted, scaling = config, config.rope_scaling
    if scaling is not None:
        used = {ours: getattr(scaling, ours) for ours in ROPE_KEYS[scaling.kind].values()}
        wanted = config.changed(rope_scaling=RopeScaling(kind=scaling.kind, **used))
    return [
        name for name in ModelConfig.model_fields if getattr(back, name) != getattr(wanted, name)
    ]


def _expresses(family: Family, config: ModelConfig) -> bool:
    candidate = config.changed(family=family)
    try:
        return not _differing(candidate, _spell(candidate, "float32"))
    except ConfigError:
        return False
