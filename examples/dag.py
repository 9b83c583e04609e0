"""How does reachability look when yes and no are told apart?

Metrics of one's own: a model that always says "no" has half of the answers right, and shows here.

    python -m examples.dag --nodes 10 --edges 14 --num-layers 4 --num-heads 4 --run-name dag
"""

from __future__ import annotations

import sys

import torch

from stepwell.cli.train import train_main
from stepwell.tasks import Batch, DagReachability
from stepwell.train.objective import labelled
from stepwell.train.trainer import Trainer


class ReachabilityTrainer(Trainer):
    """Reports the share of right answers among the questions whose answer is yes, and is no."""

    def metrics(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """The usual metrics, and the accuracy of each answer."""
        seen = labelled(self.model, batch)
        right = seen.logits.argmax(1) == seen.labels
        found = super().metrics(batch)
        for answer, word in (("y", "yes"), ("n", "no")):
            asked = seen.labels == self.task.tokenizer.id_of(answer)
            hits = torch.logical_and(right, asked).sum()
            found[f"accuracy_of_{word}"] = (float(hits), float(asked.sum()))
        return found


if __name__ == "__main__":
    sys.exit(train_main(DagReachability, ReachabilityTrainer))
