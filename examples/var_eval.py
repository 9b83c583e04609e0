"""Does it help to weigh the deep statements more than the easy ones?

A loss of one's own, on a task that is there already:

    python -m examples.var_eval --statements 20 --operations +- --num-layers 4 --run-name deep
"""

from __future__ import annotations

import sys

from torch import Tensor
from torch.nn import functional as F

from stepwell.cli.train import train_main
from stepwell.tasks import Batch, VariableEvaluation
from stepwell.train.objective import labelled
from stepwell.train.trainer import Trainer


class DeepTrainer(Trainer):
    """Weighs each label by its depth: what takes three lookups counts three times."""

    def loss(self, batch: Batch) -> Tensor:
        """The cross entropy of the labels, weighted by depth; the weights sum to 1."""
        seen = labelled(self.model, batch)
        weights = seen.depths / seen.depths.sum()
        losses = F.cross_entropy(seen.logits, seen.labels, reduction="none")
        return (weights * losses).sum()


if __name__ == "__main__":
    sys.exit(train_main(VariableEvaluation, DeepTrainer))
