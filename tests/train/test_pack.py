"""Packed training is the same training: the same loss and gradients from fewer tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepwell.tasks import Batch, Chats
from stepwell.train.config import TrainerConfig
from stepwell.train.trainer import Trainer
from tests.support.lengths import FAMILIES, Sums


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest, small) -> TrainerConfig:
    return small(task=Sums(), model=FAMILIES[request.param], batch_size=12)


def computed(config: TrainerConfig, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """The loss, and the gradient of each parameter."""
    trainer = Trainer(config)
    trainer.model.to(dtype)
    loss = trainer.gradients(batch)
    return {"loss": loss, **{name: p.grad for name, p in trainer.model.named_parameters()}}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    return max(
        float((found[name] - value).abs().max() / value.abs().max())
        for name, value in expected.items()
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_loss_and_gradients_are_those_of_the_padded_batch(config, dtype, bound):
    padded = Trainer(config).batch(0)
    packed = Trainer(config.changed(pack=True)).batch(0)
    assert packed.ids.numel() < 0.8 * padded.ids.numel()
    expected = computed(config, padded, dtype)
    assert distance(computed(config, packed, dtype), expected) < bound
    careless = replace(packed, segments=None)
    assert distance(computed(config, careless, dtype), expected) > 1e-2


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_of_a_packed_batch_give_the_gradients_of_all(config, parts):
    packed = config.changed(pack=True)
    batch = Trainer(packed).batch(0)
    whole = computed(packed, batch, torch.float32)
    divided = computed(packed.changed(gradient_accumulation=parts), batch, torch.float32)
    assert distance(divided, whole) < 2e-6


@torch.no_grad()
def test_metrics_count_examples_and_not_rows(config):
    padded, packed = Trainer(config), Trainer(config.changed(pack=True))
    expected, found = padded.metrics(padded.batch(0)), packed.metrics(packed.batch(0))
    assert len(packed.batch(0).ids) < 12
    assert found["answer_accuracy"][1] == expected["answer_accuracy"][1] == 12
    assert {name: count for name, (_, count) in found.items()} == {
        name: count for name, (_, count) in expected.items()
    }
    assert packed.evaluate() == pytest.approx(padded.evaluate(), rel=1e-5)


@torch.no_grad()
def test_an_example_of_several_in_a_row_can_be_wrong_alone(config):
    """With a model that says 3 everywhere: right are the examples whose labels are all 3."""
    trainer = Trainer(config.changed(pack=True))
    batch = trainer.batch(0)
    batch.labels[batch.labels >= 0] = 3
    batch.labels[0, int((batch.labels[0] >= 0).nonzero()[0])] = 4
    trainer.model.logits = lambda hidden: torch.eye(8)[3].expand(len(hidden), 8)  # type: ignore
    assert trainer.metrics(batch)["answer_accuracy"] == (11, 12)


def test_a_packed_run_learns_and_shows_samples(small):
    config = small(steps=150, batch_size=64, evaluate_every=0, save_every=0, pack=True)
    run = Trainer(config).train()
    assert run.metrics["answer_accuracy"] > 0.9
    [samples] = (run.directory / "samples").iterdir()
    assert all(json.loads(line)["predicted"] for line in samples.read_text().splitlines())


def test_chats_of_different_lengths_take_fewer_tokens(small, tmp_path: Path):
    rows = [{"data": [f"{n}?", "so " * (1 + n * n % 40)]} for n in range(200)]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = small(task=Chats(path=path), batch_size=32)
    plans = [Trainer(config.changed(pack=pack)).plan() for pack in (False, True)]
    assert plans[1].tokens < 0.7 * plans[0].tokens
    assert plans[1].trained_tokens == plans[0].trained_tokens
    steps = [[Trainer(config.changed(pack=p)).batch(s) for s in range(5)] for p in (False, True)]
    padded, packed = (sum(batch.ids.numel() for batch in batches) for batches in steps)
    assert packed < 0.7 * padded
