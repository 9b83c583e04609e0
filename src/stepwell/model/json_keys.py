"""JSON files and the keys in them, each of which is to be taken or refused.

Owns the kinds of value (a size, a positive number, true or false) and the words of a refusal. What
the keys mean is said in `config_json`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stepwell.errors import ConfigError, WeightsError

LARGEST_SIZE = 2**28
_LARGEST_NUMBER = 1e30


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError where it is no JSON object, naming the line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise WeightsError(
            f"{path} does not exist.",
            fix="name a directory that holds config.json and model.safetensors.",
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


class Keys:
    """The keys of one JSON object. Each is to be taken before `finish` refuses the others."""

    def __init__(
        self, values: Mapping[str, Any], where: str, ignore: Collection[str], group: str = ""
    ) -> None:
        self.where, self._ignore, self._group = where, ignore, group
        self._values = {key: value for key, value in values.items() if group + key not in ignore}
        self._left = dict(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = None) -> Any:
        """The value as it is; `default` where the key is missing."""
        self._left.pop(key, None)
        return self._values.get(key, default)

    def inside(self, key: str) -> Keys | None:
        """The keys of the object at `key`; None where it is missing, null or empty."""
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.refusal(key, value, "an object or null")
        return Keys(value, self.where, self._ignore, f"{key}.") if value else None

    def size(self, key: str, default: int, *, least: int = 1, most: int = LARGEST_SIZE) -> int:
        """A whole number, bounded so that no file can ask for more memory than there is."""
        value = self.take(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.refusal(key, value, f"a whole number from {least} to {most}")
        return value

    def size_or_null(self, key: str, default: int | None) -> int | None:
        """A size, or None where the file says null."""
        return None if self.take(key, default) is None else self.size(key, default or 0)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.take(key, default)
        if type(value) not in (int, float) or not 0 < value < _LARGEST_NUMBER:
            raise self.refusal(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false, not 1 or 0."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, value, "true or false")
        return value

    def refusal(self, key: str, value: Any, expected: str, fix: str = "") -> ConfigError:
        """The error for a value that does not do."""
        problem = f"{self.where}: {self._group}{key} is {shown(value)}, expected {expected}."
        return ConfigError(problem, fix=fix)

    def finish(self, only: Mapping[str, tuple[Any, ...]], harmless: Collection[str] = ()) -> None:
        """Raises ConfigError for a key that nobody took and that is neither `harmless` nor has one
        of the values that `only` allows it.
        """
        for key, value in self._left.items():
            if key in only:
                if value not in only[key]:
                    accepted = " or ".join(shown(accepted) for accepted in only[key])
                    raise self.refusal(key, value, f"{accepted} (stepwell computes nothing else)")
            elif key not in harmless:
                name = self._group + key
                raise ConfigError(
                    f"{self.where}: {name} = {shown(value)} is not a key that stepwell knows; "
                    "it may change what the model computes.",
                    fix=f"if it does not, pass ignore_keys=({name!r},) to load_model.",
                )


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def shown(value: Any) -> str:
    """A value as JSON spells it, or an abridged list or object."""
    nested = isinstance(value, (list, tuple, dict))
    text = reprlib.repr(value) if nested else json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
