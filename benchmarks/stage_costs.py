"""What does an answer of each stage cost, at batch 64 and batch 1?

Run after `stepwell demo`, on an idle machine: `python -m benchmarks.stage_costs [LADDER]`.
Prints seconds an answer (median of five turns) and FLOPs, each relative to the largest stage.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stepwell.cascade.costs import measure_costs
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.stage import LocalStage
from stepwell.tasks import Facts


def main(ladder: Path = Path("runs/demo/ladder.yaml")) -> None:
    """Measure and print."""
    config = LadderConfig.read(ladder)
    stages = [LocalStage.load(stage.name, ladder.parent / stage.model) for stage in config.stages]
    prompts = [example.prompt for example in Facts().all()[:64]]
    costs = measure_costs(stages, prompts, sampling=config.sampling)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'stage':10} {'ms @64':>10} {'ms @1':>10} {'FLOPs':>12}   relative to the largest")
    relative = [costs.seconds(64), costs.seconds(1), costs.flops()]
    for index, stage in enumerate(costs.stages):
        shares = "  ".join(f"{values[index] / values[-1]:.3f}" for values in relative)
        batched, alone = stage.seconds["64"] * 1e3, stage.seconds["1"] * 1e3
        print(f"{stage.name:10} {batched:10.4f} {alone:10.3f} {stage.flops:12,.0f}   {shares}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
