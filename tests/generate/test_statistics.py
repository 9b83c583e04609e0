"""Running statistics are those of all values at once, whatever the batches."""

from __future__ import annotations

import pytest
import torch

from stepwell.errors import HookError
from stepwell.generate import statistics as statistics_module
from stepwell.generate.record import record
from stepwell.generate.statistics import Statistics, statistics
from stepwell.generate.tape import Record
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import ZeroHeads
from stepwell.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=31, context_length=32, width=24, num_layers=2, num_heads=4)
LENGTHS = [3, 9, 1, 17, 5, 9, 2]
SPEC = Record(points=("attention.heads", "mlp.output"))


@pytest.fixture(scope="module")
def model():
    model = Transformer(CONFIG)
    model.initialize(0)
    return model.eval()


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 31, (length,), generator=generator).tolist() for length in LENGTHS]


def all_at_once(model, prompts, key):
    rows = [record(model, [prompt], SPEC).row(0)[key].double() for prompt in prompts]
    return torch.cat(rows)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_statistics_of_batches_are_those_of_all_values(model, prompts, batch, monkeypatch):
    monkeypatch.setattr(statistics_module, "BATCH", batch)
    found = statistics(model, prompts, SPEC)
    for key, each in found.items():
        values = all_at_once(model, prompts, key)
        assert each.count == sum(LENGTHS) == len(values)
        torch.testing.assert_close(each.mean, values.mean(0), atol=1e-6, rtol=0)
        torch.testing.assert_close(each.variance, values.var(0, correction=0), atol=1e-6, rtol=0)
        torch.testing.assert_close(each.norm, values.norm(dim=-1).mean(0), atol=1e-6, rtol=0)
    assert found["attention.heads", 1].norm.shape == (4,)
    assert found["mlp.output", 0].mean.shape == (24,)


def test_a_variance_without_the_distance_of_the_means_is_noticed():
    low, high = Statistics.of(torch.zeros(4, 2)), Statistics.of(torch.ones(4, 2))
    assert low.merged(high).variance.tolist() == [0.25, 0.25]
    assert 0.5 * (low.variance + high.variance).max() == 0


def test_a_silenced_head_has_no_norm(model, prompts):
    spec = Record(points=("attention.heads",), layers=(1,), heads=(2, 0))
    found = statistics(model, prompts, spec, [ZeroHeads({1: [2]})])
    assert (found["attention.heads", 1].norm == 0).tolist() == [True, False]


def test_the_pattern_has_no_mean(model, prompts):
    with pytest.raises(HookError, match="its width grows with the text"):
        statistics(model, prompts, Record(points=("attention.pattern",)))


def test_positions_are_chosen(model, prompts):
    found = statistics(model, prompts, Record(points=("mlp.output",), positions="last"))
    assert {each.count for each in found.values()} == {len(prompts)}
