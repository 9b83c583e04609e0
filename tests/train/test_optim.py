from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.train.config import OptimizerConfig
from stepwell.train.optim import learning_rate, make_optimizer, update

STEPS = 1000
PEAK = 0.5


def rates(**fields: object) -> list[float]:
    config = OptimizerConfig(lr=PEAK, **{"warmup": 0.0, "final_share": 0.0, **fields})
    return [learning_rate(config, step, STEPS) for step in range(STEPS)]


def test_warmup_rises_in_a_line_to_the_peak():
    rising = rates(schedule="constant", warmup=0.1)
    assert rising[:100] == pytest.approx([PEAK * (step + 1) / 100 for step in range(100)])
    assert rising[100:] == [PEAK] * 900


def test_cosine_is_half_a_cosine_between_peak_and_final_rate():
    falling = rates(schedule="cosine", warmup=0.1, final_share=0.2)
    assert falling[100] == PEAK
    assert falling[550] == pytest.approx((PEAK + 0.2 * PEAK) / 2)
    assert falling[100 + 225] == pytest.approx(PEAK * (0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2))
    assert falling[-1] == pytest.approx(0.2 * PEAK, rel=1e-4)


def test_linear_falls_by_the_same_amount_each_step():
    falling = rates(schedule="linear", final_share=0.5)
    steps = [before - after for before, after in pairwise(falling)]
    assert falling[0] == PEAK
    assert steps == pytest.approx([PEAK * 0.5 / STEPS] * (STEPS - 1))


def test_wsd_stays_and_then_falls_with_a_root():
    falling = rates(schedule="wsd", decay=0.2)
    assert falling[:801] == [PEAK] * 801
    assert falling[850] == pytest.approx(PEAK * (1 - math.sqrt(50 / 200)))
    assert falling[-1] == pytest.approx(PEAK * (1 - math.sqrt(199 / 200)))
    assert rates(schedule="wsd", decay=0.0) == [PEAK] * STEPS


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_no_schedule_leaves_the_range_or_rises_after_the_warmup(schedule):
    falling = rates(schedule=schedule, warmup=0.05, final_share=0.1)
    assert all(0.1 * PEAK <= rate <= PEAK for rate in falling[50:])
    assert all(a >= b for a, b in pairwise(falling[50:]))


@pytest.fixture
def model() -> Transformer:
    made = Transformer(
        ModelConfig(vocab_size=11, width=8, num_layers=1, num_heads=2, qkv_bias=True)
    )
    made.initialize(0)
    return made


def loss_of(model: Transformer) -> torch.Tensor:
    ids = torch.arange(10).reshape(2, 5)
    return model(ids).logsumexp(-1).mean()


def test_only_matrices_decay(model):
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update(optimizer, list(model.parameters()), torch.tensor(0.0), 0.1, 0.0)
    for name, value in model.state_dict().items():
        kept = 1 - 0.1 * 0.5 if before[name].dim() >= 2 else 1.0
        torch.testing.assert_close(value, before[name] * kept)


def test_an_update_is_adamw_on_clipped_gradients(model):
    """Against torch's own unfused optimizer and clipping, in float64."""
    model = model.double()
    reference = copy.deepcopy(model)
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.02, weight_decay=0.0, foreach=False)
    ours = make_optimizer(model, OptimizerConfig(weight_decay=0.0, beta2=0.999))
    for _ in range(3):
        for one, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            loss = loss_of(one)
            loss.backward()
            if optimizer is ours:
                _, norm = update(ours, list(model.parameters()), loss.detach(), 0.02, 0.01)
            else:
                expected = clip_grad_norm_(reference.parameters(), 0.01)
                theirs.step()
        torch.testing.assert_close(norm, expected)
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing(model, clip, broken):
    optimizer = make_optimizer(model, OptimizerConfig())
    loss_of(model).backward()
    update(optimizer, list(model.parameters()), torch.tensor(1.0), 0.1, clip)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])
    bad = torch.tensor(math.nan if broken == "loss" else 1.0)
    if broken == "gradient":
        next(iter(model.parameters())).grad[0, 0] = math.inf
    loss, _ = update(optimizer, list(model.parameters()), bad, 0.1, clip)
    assert loss.isnan()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    for number, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[key], state[number][key]) for key in values)


def test_without_the_guard_the_same_update_poisons_the_weights(model):
    optimizer = make_optimizer(model, OptimizerConfig())
    loss_of(model).backward()
    next(iter(model.parameters())).grad[0, 0] = math.inf
    optimizer.step()
    assert any(value.isnan().any() for value in model.state_dict().values())
