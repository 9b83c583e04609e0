"""A model that learns under interventions: what is silenced learns nothing."""

from __future__ import annotations

import pytest
import torch

from stepwell.errors import ConfigError, HookError
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import ZeroHeads
from stepwell.train.trainer import Trainer

SILENCED = [{"zero_heads": {"0": [1]}}]


@pytest.fixture
def plain(small):
    return small(steps=3, run_name="plain")


@pytest.fixture
def changed(small):
    return small(steps=3, run_name="changed", interventions=SILENCED)


def test_the_loss_is_that_of_a_model_under_the_intervention(plain, changed) -> None:
    unchanged, trainer = Trainer(plain), Trainer(changed)
    batch = trainer.batch(0)
    without, under = unchanged.gradients(batch), trainer.gradients(batch)
    assert under != without
    unchanged.model.hooks = Hooks([ZeroHeads({0: [1]})])
    assert torch.equal(unchanged.gradients(batch), under)


def test_a_silenced_head_gets_no_gradient(changed) -> None:
    trainer = Trainer(changed)
    trainer.gradients(trainer.batch(0))
    attention = trainer.model.blocks[0].attention
    by_head = attention.o_proj.weight.grad.unflatten(1, (attention.num_heads, -1)).abs()
    moved = (by_head.amax((0, 2)) > 0).tolist()
    assert moved == [head != 1 for head in range(attention.num_heads)]


def test_a_run_keeps_what_it_was_trained_under(changed) -> None:
    run = Trainer(changed).train()
    assert "zero_heads" in (run.directory / "run.yaml").read_text()
    with pytest.raises(ConfigError, match="interventions"):
        Trainer(changed.changed(interventions=())).train()


@pytest.mark.parametrize(
    ("interventions", "said"),
    [
        ([{"replace": {"point": "logits", "value": 0.0}}], "change a point of a layer"),
        ([{"zero_heads": {"heads": {"0": [1]}, "positions": "last"}}], "number the positions"),
    ],
)
def test_what_has_no_meaning_in_training_is_refused(small, interventions, said) -> None:
    with pytest.raises(ConfigError, match=said):
        small(interventions=interventions)


def test_what_the_model_does_not_have_is_refused(small) -> None:
    with pytest.raises(HookError, match="not 9"):
        Trainer(small(interventions=[{"zero_heads": {"9": [1]}}])).train()
