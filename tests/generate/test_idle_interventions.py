"""An intervention that changes nothing leaves a request where it was, on the kernels."""

from __future__ import annotations

import pytest
import torch

from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import NativeExecutor, TorchExecutor
from stepwell.generate.request import Request, SamplingParams, TokenEvent
from stepwell.model.interventions import Intervention, Replace, ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.native import library

IDLE = (ZeroHeads({}), ZeroHeads({0: []}), ZeroHeads({1: [2]}, positions=()))
ACTIVE = (ZeroHeads({1: [2]}), Replace(point="logits", value=1.0))
SAMPLED = SamplingParams(max_new_tokens=12, temperature=0.8, seed=3, logprobs=0, ignore_eos=True)


def events(model: Transformer, *interventions: Intervention) -> list[TokenEvent]:
    """The tokens of one request, with their log-probabilities."""
    request = Request((1, 5, 7, 9, 2), SAMPLED, interventions=interventions)
    handle = InferenceEngine(model).submit(request)
    return [event for event in handle if isinstance(event, TokenEvent)]


@pytest.mark.parametrize("intervention", IDLE)
def test_what_changes_nothing_is_idle(model, intervention):
    assert intervention.is_idle
    assert events(model, intervention) == events(model)


@pytest.mark.parametrize("intervention", ACTIVE)
def test_what_changes_something_is_not(model, intervention):
    assert not intervention.is_idle
    assert events(model, intervention) != events(model)


@pytest.mark.skipif(library.load() is None, reason="there are no kernels")
def test_idle_interventions_run_on_the_kernels_and_active_ones_in_torch(model, monkeypatch):
    ran = []
    for kind in (NativeExecutor, TorchExecutor):
        run = kind.run

        def noted(self, *arguments, run=run):
            ran.append(type(self))
            return run(self, *arguments)

        monkeypatch.setattr(kind, "run", noted)
    events(model, *IDLE)
    assert set(ran) == {NativeExecutor}
    ran.clear()
    monkeypatch.setattr(library, "outcome", lambda: library.Unavailable("switched off"))
    events(model, ACTIVE[0])
    assert set(ran) == {TorchExecutor}


def test_idle_interventions_share_a_batch_and_the_prefix_cache_with_none(long_model):
    engine = InferenceEngine(long_model)
    prompt = tuple(torch.arange(130).remainder(11).tolist())
    greedy = SamplingParams(max_new_tokens=2, temperature=0.0, ignore_eos=True)
    list(engine.submit(Request(prompt, greedy)))
    for interventions, cached in ((IDLE, 128), (ACTIVE, 0)):
        *_, finished = engine.submit(Request(prompt, greedy, interventions=interventions))
        assert finished.usage.cached_tokens == cached
