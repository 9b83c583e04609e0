"""The rejection rule in the engine: drafts of any length leave the distribution of the answers."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch

from stepwell.generate import drafters as drafters_module
from stepwell.generate.draft import Pace
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.noise import Purpose
from stepwell.generate.request import Request, SamplingParams, TokenEvent
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

COUNT = 2000


@pytest.fixture(autouse=True)
def lengths(monkeypatch):
    """Draft lengths are drawn at random instead of measured."""
    chosen = random.Random(0)
    monkeypatch.setattr(Pace, "choose", lambda *_: chosen.choice([0, 1, 2, 3]))


def tokens(handle):
    """The token ids of each choice."""
    found = [[] for _ in handle.sequences]
    for event in handle:
        if isinstance(event, TokenEvent):
            found[event.choice].append(event.token_id)
    return found


def tiny():
    """A target and a drafter over four tokens, far enough apart that drafts are often rejected."""
    config = ModelConfig(
        vocab_size=4, context_length=16, width=16, num_layers=1, num_heads=1, tie_embeddings=False
    )
    models = []
    for seed in (0, 1):
        model = Transformer(config)
        model.initialize(seed)
        with torch.no_grad():
            model.head.weight.mul_(1.5)
        models.append(model.eval())
    return models


def texts_by_rejection(target, draft):
    """Answers of four tokens to one prompt, a seed each."""
    engine, results = InferenceEngine(target, max_rows=64, eos_ids=[]), []
    observe = engine._speculation.observe

    def watch(sampled, drafts, seconds):
        results.extend((len(drafts[each].ids), len(sampled[each]) - 1) for each in drafts)
        observe(sampled, drafts, seconds)

    engine._speculation.observe = watch
    asked = [Request((1, 2), SamplingParams(seed=seed, max_new_tokens=4)) for seed in range(COUNT)]
    handles = [engine.submit(each, draft=draft, draft_rule="rejection") for each in asked]
    texts = [tuple(tokens(handle)[0]) for handle in handles]
    drafted, kept = map(sum, zip(*results, strict=True))
    assert 0.2 * drafted < kept < 0.9 * drafted
    return texts


def chances(target):
    """The chance of each answer of four tokens, from full forwards in float64."""
    found = {}
    model = Transformer(target.config)
    model.load_state_dict(target.state_dict())
    model = model.double().eval()
    for text in itertools.product(range(4), repeat=4):
        with torch.no_grad():
            rows = model(torch.tensor([[1, 2, *text]])).log_softmax(-1)[0, 1:-1]
        found[text] = math.exp(float(rows.gather(1, torch.tensor(text)[:, None]).sum()))
    return found


def is_distributed(texts, expected):
    """Whether answers come as often as their chances say: chi-square, its 99.99th percentile."""
    counts, pools, rest = Counter(texts), [], [0, 0.0]
    for text, chance in expected.items():
        mean = chance * len(texts)
        if mean >= 5:
            pools.append((counts[text], mean))
        else:
            rest = [rest[0] + counts[text], rest[1] + mean]
    pools.append(tuple(rest))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pools if mean)
    freedom = len(pools) - 1
    spread = 2 / (9 * freedom)
    return statistic < freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("source", ["model", "lookup"])
def test_the_rejection_rule_keeps_the_distribution(source):
    target, drafter = tiny()
    draft = drafter if source == "model" else source
    assert is_distributed(texts_by_rejection(target, draft), chances(target))


def test_drafts_drawn_with_the_noise_that_accepts_them_break_the_distribution(monkeypatch):
    monkeypatch.setattr(drafters_module, "_purpose", lambda sequence: Purpose.ACCEPT)
    target, drafter = tiny()
    assert not is_distributed(texts_by_rejection(target, drafter), chances(target))


def three_requests(**params):
    params = {"max_new_tokens": 12, **params}
    return [
        Request((1, 2, 3) * (1 + seed), SamplingParams(seed=seed, **params)) for seed in range(3)
    ]


def answers(model, asked, sources):
    """The events of each request, those of one batch, drafted for by the rejection rule."""
    engine = InferenceEngine(model, max_rows=8, eos_ids=[], newline_ids=[])
    pairs = zip(asked, sources, strict=True)
    handles = [engine.submit(each, draft=draft, draft_rule="rejection") for each, draft in pairs]
    found = [list(handle) for handle in handles]
    assert engine.num_free_rows == 8
    return found


def ids(events):
    return sorted((event.choice, event.token_id) for event in events if is_token(event))


def is_token(event):
    return isinstance(event, TokenEvent)


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.9, "n": 2}])
def test_requests_of_every_kind_share_a_batch(model, params):
    other = remade(model)
    asked = three_requests(**params)
    found = answers(model, asked, [other, "lookup", None])
    plain = answers(model, asked, [None] * 3)
    assert ids(found[2]) == ids(plain[2])
    same = [ids(one) == ids(another) for one, another in zip(found, plain, strict=True)]
    assert all(same) == (params.get("temperature") == 0)
    assert [len(events) for events in found] == [len(events) for events in plain]


def remade(model):
    made = Transformer(model.config)
    made.initialize(5)
    return made.eval()


def test_log_probabilities_are_the_targets_own(model):
    [request, *_] = three_requests(logprobs=1)
    [events] = answers(model, [request], [remade(model)])
    text = [*request.prompt_ids, *(event.token_id for event in events if is_token(event))]
    with torch.no_grad():
        logprobs = model(torch.tensor([text])).double().log_softmax(-1)[0]
    for place, event in enumerate(filter(is_token, events), start=len(request.prompt_ids)):
        expected = float(logprobs[place - 1, event.token_id])
        assert event.logprob == pytest.approx(expected, abs=1e-5)
        assert len(event.top_logprobs) == 1
