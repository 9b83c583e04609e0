"""What the kernels read or change on their way, as a table that they understand.

Owns the mirror of `stepwell_hook`. Knows points by number and rows of a step by place; what they
mean is told from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

POINTS: Final = {
    "residual.before": 0,
    "attention.pattern": 1,
    "attention.heads": 2,
    "attention.output": 3,
    "mlp.output": 4,
    "residual.after": 5,
}
LOGITS: Final = "logits"  # behind the last layer
ACTIONS: Final = {"scale": 0, "add": 1, "set": 2, "keep": 3}

_HOOK: Final = np.dtype(
    [
        *((name, np.uintp) for name in ("slots", "values", "to")),
        *((name, np.int64) for name in ("row_stride", "slot_stride")),
        *((name, np.int32) for name in ("first_row", "rows", "action")),
        ("number", np.float32),
    ]
)


class Touch(NamedTuple):
    """One action at one point of one layer, on neighbouring rows of a step.

    values, for "add" and "set", and `to`, for "keep", are float32 [P, H, W], contiguous: P is the
    number of rows, or 1 for the same values in all; H is the number of `heads`, or 1.
    """

    point: str
    layer: int
    action: str
    first_row: int
    rows: int
    number: float = 0.0
    heads: tuple[int, ...] | None = None
    values: NDArray[np.float32] | None = None
    to: NDArray[np.float32] | None = None


class HookTable:
    """Touches as the kernels read them: by layer and point, each's in the order given."""

    def __init__(self, touches: Sequence[Touch], num_layers: int, num_heads: int) -> None:
        keys = [_key(touch, num_layers) for touch in touches]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._slots: list[NDArray[np.int32]] = []  # what the table's pointers point to
        self._touches = touches
        entries = [self._entry(touches[each], num_heads) for each in order]
        self.table = np.array(entries, _HOOK)
        counts = np.bincount(keys, minlength=num_layers * len(POINTS) + 1)
        self.starts = np.concatenate(([0], counts.cumsum())).astype(np.int32)

    def _entry(self, touch: Touch, num_heads: int) -> tuple[Any, ...]:
        block = touch.to if touch.values is None else touch.values
        row_stride = slot_stride = 0
        if block is not None:
            positions, heads, width = block.shape
            row_stride = heads * width if positions > 1 else 0
            slot_stride = width if heads > 1 else 0
        return (
            self._slots_of(touch, num_heads),
            0 if touch.values is None else touch.values.ctypes.data,
            0 if touch.to is None else touch.to.ctypes.data,
            row_stride,
            slot_stride,
            touch.first_row,
            touch.rows,
            ACTIONS[touch.action],
            touch.number,
        )

    def _slots_of(self, touch: Touch, num_heads: int) -> int:
        """Where it is said which head's values are which; 0 where all are, in order."""
        if touch.heads is None:
            return 0
        slots = np.full(num_heads, -1, np.int32)
        slots[list(touch.heads)] = range(len(touch.heads))
        self._slots.append(slots)
        return slots.ctypes.data


def _key(touch: Touch, num_layers: int) -> int:
    if touch.point == LOGITS:
        return num_layers * len(POINTS)
    return touch.layer * len(POINTS) + POINTS[touch.point]
