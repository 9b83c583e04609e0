"""Fitted values as plain documents that JSON holds, with a kind and a format version.

Owns reading and writing of frozen dataclasses of numbers; what the numbers mean is their owner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import pydantic

from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import DataError, FormatError

Value = TypeVar("Value")


def _array(value: Any) -> FloatArray:
    array: FloatArray = np.array(value, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("expected finite numbers")
    return array


Array = Annotated[
    FloatArray,
    pydantic.PlainValidator(_array),
    pydantic.PlainSerializer(lambda array: array.tolist()),
]


@cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    """What reads and writes a class; to make one takes milliseconds."""
    return pydantic.TypeAdapter(cls)


def to_document(value: object, kind: str, version: int) -> dict[str, Any]:
    """The fields of a dataclass as plain Python, headed by its kind and format version."""
    fields = _adapter(cast(Any, type(value))).dump_python(value, mode="json")
    return {"kind": kind, "format_version": version, **fields}


def from_document(cls: type[Value], plain: object, kind: str, version: int) -> Value:
    """The dataclass that `to_document` wrote.

    Raises FormatError where the document is newer than `version`, DataError where it is damaged or
    of another kind.
    """
    if not isinstance(plain, Mapping) or plain.get("kind") != kind:
        found = plain.get("kind") if isinstance(plain, Mapping) else type(plain).__name__
        raise DataError(f"expected a document of kind {kind!r}, got {found!r}.")
    written = plain.get("format_version")
    if not isinstance(written, int) or written < 1:
        raise DataError(
            f"the {kind} has format_version {written!r}, expected a whole number from 1."
        )
    if written > version:
        raise FormatError(
            f"the {kind} has format_version {written}, this stepwell reads up to {version}.",
            fix="update stepwell, or fit it again with this version.",
        )
    fields = {name: value for name, value in plain.items() if name not in _HEADER}
    try:
        return pydantic.TypeAdapter(cls).validate_python(fields)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise DataError(f"the {kind} is damaged at {where!r}: {fault['msg']}.") from None


_HEADER = ("kind", "format_version")
