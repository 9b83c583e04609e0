"""Our side of training: the step of a Trainer on random ids, and its share of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch

from stepwell.evals.bench.figures import make_row
from stepwell.evals.bench.peers.conversation import LEARNING_RATE, random_prompts
from stepwell.evals.bench.turns import Turn, rate, take_turns
from stepwell.model.config import ModelConfig
from stepwell.tasks.base import Batch, Task
from stepwell.tasks.example import Example
from stepwell.train.config import OptimizerConfig, TrainerConfig
from stepwell.train.trainer import Trainer

if TYPE_CHECKING:
    from stepwell.evals.bench.figures import Row
    from stepwell.evals.bench.ours import Ours
    from stepwell.evals.bench.plan import BenchPlan, Subject

SIDE: Final = 2048
"""Rows and columns of the matrices whose product is what the machine can do."""


class RandomIds(Task):
    """Ids without meaning: every next one is trained."""

    def example(self, index: int) -> Example:
        """A text of one letter; batches are made elsewhere."""
        return Example.completion(str(index), "a")


class TimedTrainer(Trainer):
    """A trainer of a model with any vocabulary, whose steps are timed."""

    def __init__(self, model: ModelConfig, *, compiled: bool) -> None:
        config = TrainerConfig(
            model=model,
            task=RandomIds(),
            compile=compiled,
            precision="bfloat16",
            optimizer=OptimizerConfig(lr=LEARNING_RATE, schedule="constant", warmup=0),
            device="cpu",
        )
        super().__init__(config)
        self.model_config = model

    def step_s(self, rows: int, length: int, seed: int) -> float:
        """Seconds of a step: forward, backward, clipping and update."""
        batch = next_tokens(rows, length, seed, self.model_config.vocab_size)
        begun = time.perf_counter()
        self.update(0, self.gradients(batch))[0].item()
        return time.perf_counter() - begun


def next_tokens(rows: int, length: int, seed: int, vocab_size: int) -> Batch:
    """A batch of random rows of `length` tokens in which every next token is a label."""
    ids = torch.tensor(random_prompts(seed, [length + 1] * rows, vocab_size))
    return Batch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:]))


def share(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:
    """GFLOP/s of compiled training steps, six a parameter and token, against bf16 products."""
    tokens = plan.train_rows * plan.train_tokens

    def training(number: int) -> float:
        seconds = ours.train(plan.train_rows, plan.train_tokens, number, compiled=True)
        return rate(6 * ours.model.config.num_parameters * tokens, seconds) / 1e9

    figures = take_turns({"training": training, "products": product_turn()}, plan)
    sides = (figures["training"], "bf16 products", figures["products"])
    yield make_row("train", "6 N, compiled", subject.name, "GFLOP/s", *sides)


def product_turn() -> Turn:
    """A turn that gives GFLOP/s of the product of two square matrices in bfloat16."""
    left, right = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16) for _ in range(2))

    def turn(_round: int) -> float:
        begun = time.perf_counter()
        for _ in range(4):
            left @ right
        return 4 * 2 * SIDE**3 / (time.perf_counter() - begun) / 1e9

    return turn
