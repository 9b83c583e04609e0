"""Numbers inside a declared value: arrays that can be compared, hashed and written as JSON."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import torch
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from torch import Tensor


class Values:
    """An array of finite float32 that never changes, from nested lists, NumPy or a tensor."""

    def __init__(self, values: Any) -> None:
        try:
            held = torch.as_tensor(values).detach().to("cpu", torch.float32, copy=True)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError("expected numbers in lists of equal lengths, or an array") from None
        if not held.numel():
            raise ValueError("expected numbers, got none")
        if not held.isfinite().all():
            raise ValueError("expected finite numbers, got NaN or infinity")
        self._tensor = held.contiguous()

    @property
    def tensor(self) -> Tensor:
        """The numbers, float32 on the CPU. They are shared: do not write to them."""
        return self._tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(self._tensor.shape)

    @cached_property
    def _key(self) -> tuple[tuple[int, ...], bytes]:
        return self.shape, self._tensor.numpy().tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Values({list(self.shape)})"

    def plain(self) -> Any:
        """The numbers as nested lists."""
        return self._tensor.tolist()

    @classmethod
    def read(cls, value: Any) -> Self:
        """The array of such a value. Raises ValueError for what is none."""
        return value if isinstance(value, cls) else cls(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How a Config reads an array, and how JSON shows it."""
        return core_schema.no_info_plain_validator_function(
            cls.read, serialization=core_schema.plain_serializer_function_ser_schema(cls.plain)
        )
