"""Does a deeper network follow longer chains of names?

Trains networks of 1, 2 and 3 layers (2 heads, width 64) on variable renaming with three seeds each,
and prints accuracy by layers and by chain depth: `python -m benchmarks.renaming_depth`. Guessing is
right a quarter of the time. Takes some ten minutes on two cores; finished runs are reused.
"""

from __future__ import annotations

import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

from stepwell.model.presets import gpt2_shape
from stepwell.tasks import VariableRenaming
from stepwell.train.config import OptimizerConfig, TrainerConfig

LAYERS = (1, 2, 3)
SEEDS = (0, 1, 2)
RUNS = Path("runs/renaming-depth")
DEPTHS = range(1, 5)


def config(layers: int, seed: int) -> TrainerConfig:
    """The run of one network."""
    return TrainerConfig(
        model=gpt2_shape(width=64, num_layers=layers, num_heads=2, context_length=32),
        task=VariableRenaming(chains=4, renames=8, seed=seed),
        steps=2500,
        batch_size=64,
        seed=seed,
        optimizer=OptimizerConfig(lr=3e-3, warmup=0.05, weight_decay=0.0),
        evaluation_batches=16,
        evaluate_every=0,
        save_every=0,
        threads=1,
        runs=RUNS,
        run_name=f"layers-{layers}-seed-{seed}",
    )


def train(layers: int, seed: int) -> dict[str, float]:
    """Accuracies on the validation split, over all labels and by depth."""
    from stepwell.train.trainer import Trainer

    metrics = Trainer(config(layers, seed)).train().metrics
    return {name: value for name, value in metrics.items() if name.startswith("accuracy")}


def main() -> None:
    """Train all networks, one a core, and print the table."""
    jobs = list(product(reversed(LAYERS), SEEDS))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(jobs, pool.map(train, *zip(*jobs, strict=True)), strict=True))
    columns = ["accuracy", *(f"accuracy/depth_{depth}" for depth in DEPTHS)]
    print("layers  " + "  ".join(f"{name.removeprefix('accuracy/'):>16}" for name in columns))
    for layers in LAYERS:
        cells = []
        for name in columns:
            values = [results[layers, seed][name] for seed in SEEDS]
            spread = f"[{min(values):.3f}, {max(values):.3f}]"
            cells.append(f"{statistics.fmean(values):.2f} {spread}")
        print(f"{layers:6}  " + "  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
