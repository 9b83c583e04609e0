"""Does a deeper network follow longer chains of names, and do two heads follow more than one?

Trains networks of 1, 2 and 3 layers with 1 head and with 2 (width 64) on variable renaming with
three seeds each, and prints accuracy by layers, heads and chain depth: `python -m
benchmarks.renaming_depth`. Guessing is right a quarter of the time. Takes about an hour on two
cores; finished runs are reused.
"""

from __future__ import annotations

import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

from stepwell.model.presets import gpt2_shape
from stepwell.tasks import Batch, VariableRenaming
from stepwell.train.config import OptimizerConfig, TrainerConfig
from stepwell.train.trainer import Trainer

LAYERS = (1, 2, 3)
HEADS = (1, 2)
SEEDS = (0, 1, 2)
DEPTHS = range(1, 7)
RENAMES = 16


class MixedLengths(Trainer):
    """Trains on texts of all lengths up to the task's, and is evaluated on the longest.

    In a short text the right name stands among few, so that looking it up is learnt soon.
    """

    def batch(self, step: int) -> Batch:
        """The examples of a step, all of one length."""
        shortest = self.task.chains + 1
        length = shortest + step % (self.task.renames - shortest + 1)
        size = self.config.batch_size
        indices = range(step * size, (step + 1) * size)
        return self.task.changed(renames=length).batch("train", indices)


def config(layers: int, heads: int, seed: int) -> TrainerConfig:
    """The run of one network."""
    return TrainerConfig(
        model=gpt2_shape(width=64, num_layers=layers, num_heads=heads, context_length=4 * RENAMES),
        task=VariableRenaming(chains=4, renames=RENAMES, seed=seed),
        steps=6000,
        batch_size=64,
        seed=seed,
        optimizer=OptimizerConfig(lr=1e-3, schedule="wsd", warmup=0.05, weight_decay=0.0),
        evaluation_batches=16,
        evaluate_every=0,
        save_every=0,
        threads=1,
        runs=Path("runs/renaming-depth"),
        run_name=f"layers-{layers}-heads-{heads}-seed-{seed}",
    )


def train(layers: int, heads: int, seed: int) -> dict[str, float]:
    """Accuracies on the validation split, over all labels and by depth."""
    metrics = MixedLengths(config(layers, heads, seed)).train().metrics
    return {name: value for name, value in metrics.items() if name.startswith("accuracy")}


def table(results: dict[tuple[int, int, int], dict[str, float]]) -> str:
    """Means over seeds with the smallest and the largest, by layers, heads and depth."""
    columns = ["accuracy", *(f"accuracy/depth_{depth}" for depth in DEPTHS)]
    heads = [f"{name.removeprefix('accuracy/').replace('_', ' '):>17}" for name in columns]
    lines = ["layers heads " + "".join(heads)]
    for layers, heads in product(LAYERS, HEADS):
        cells = []
        for name in columns:
            values = [results[layers, heads, seed][name] for seed in SEEDS]
            spread = f"{min(values):.2f}-{max(values):.2f}"
            cells.append(f"{statistics.fmean(values):.2f} ({spread})")
        lines.append(f"{layers:6} {heads:5} " + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Train all networks, one a core, and print the table."""
    jobs = list(product(reversed(LAYERS), HEADS, SEEDS))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(train, *zip(*jobs, strict=True))
        sys.stdout.write(table(dict(zip(jobs, results, strict=True))) + "\n")


if __name__ == "__main__":
    main()
