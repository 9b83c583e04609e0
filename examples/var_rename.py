"""Does a model follow a value through renamings that lie far apart?

A task and metrics of one's own. Every flag of `stepwell train` is there, and the task's:
    python -m examples.var_rename --num-layers 4 --num-heads 8 --run-name my_experiment
"""

from __future__ import annotations

import string
import sys

import pydantic
from torch import Tensor

from stepwell.cli.train import train_main
from stepwell.tasks import Batch, Example, Task
from stepwell.train.objective import labelled
from stepwell.train.trainer import Trainer


class VarRename(Task):
    """Lines such as 1>a;2>b;a>c; where each new name is asked for its value. Depth counts steps."""

    alphabet = string.digits + string.ascii_letters + ">;"

    values: int = pydantic.Field(default=3, ge=2, le=9, description="values that names can have")
    names: int = pydantic.Field(default=16, ge=3, le=52, description="names in a text")

    @property
    def context_length(self) -> int:
        """Four characters a name."""
        return 4 * self.names

    def example(self, index: int) -> Example:
        """Names in random order; each one after the first few copies an earlier one."""
        rng = self.rng(index)
        names = rng.sample(string.ascii_letters, self.names)
        known: dict[str, tuple[int, int]] = {}
        parts, labels = [], []
        for number, name in enumerate(names):
            source = str(number + 1) if number < self.values else rng.choice(list(known))
            value, depth = known.get(source, (number + 1, 0))
            known[name] = value, depth + 1
            parts.append(f"{source}>{name};")
            labels.append((4 * number + 2, str(value), depth + 1))
        return Example.in_place("".join(parts), labels)


class RenameTrainer(Trainer):
    """Reports how sure the model is of the right value, beside the usual metrics."""

    def metrics(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """The usual ones, and the mean probability of the right value."""
        seen = labelled(self.model, batch)
        right: Tensor = seen.logits.softmax(1).gather(1, seen.labels[:, None])
        return {**super().metrics(batch), "confidence": (float(right.sum()), float(len(right)))}


if __name__ == "__main__":
    sys.exit(train_main(VarRename, RenameTrainer))
