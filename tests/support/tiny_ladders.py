"""A ladder of two models that learn a few facts in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepwell.cascade.ladder import LadderConfig
from stepwell.model.presets import presets

SIZES = {"small": (16, 1), "large": (32, 1)}


def tiny_ladder(path: Path, *, facts: int = 48, steps: tuple[int, int] = (4, 40)) -> Path:
    """The ladder file, written; both stages learn the same facts."""
    stages: list[dict[str, Any]] = []
    for (name, (width, layers)), number in zip(SIZES.items(), steps, strict=True):
        shape = presets["tiny"].resized(width=width, num_layers=layers, num_heads=2)
        train = {
            "task": {"name": "facts", "facts": facts},
            "model": shape.plain(),
            "steps": number,
            "batch_size": 64,
            "evaluate_every": 0,
            "samples": 0,
            "optimizer": {"lr": 1e-2, "schedule": "linear", "weight_decay": 0.0},
        }
        stages.append({"name": name, "model": name, "train": train})
    LadderConfig.parse(
        {
            "stages": stages,
            "predictor": {"hidden": 0, "features": ["logprobs", "agreement"]},
            "sampling": {"temperature": 0.0, "max_new_tokens": 3},
            "serving": {"max_rows": 16},
        }
    ).write(path)
    return path
