"""Sampling rows: each is sampled as it would be alone, and one that fails harms no other."""

from __future__ import annotations

import pytest
import torch

from stepwell.generate import sampler as sampler_module
from stepwell.generate.request import Request, SamplingParams
from stepwell.generate.sampler import Sampler
from stepwell.generate.sequence import Handle

V = 19
LANE = 12345
PARAMS = {
    "greedy": {"temperature": 0},
    "sampled": {},
    "warm": {"temperature": 1.5, "top_p": 0.9},
    "penalized": {"repetition_penalty": 1.8, "presence_penalty": 0.5},
    "n-grams": {"no_repeat_ngram_size": 2, "temperature": 0},
    "forced": {"forced_tokens": [4, 4, 7]},
    "not yet": {"min_new_tokens": 5, "temperature": 2.0},
    "thinking": {"think_budget": 2},
    "newlines": {"newline_run_limit": 1, "temperature": 3.0},
}


def sequence_of(prompt=(1, 2), choice=0, **params):
    handle = Handle(
        Request(prompt, SamplingParams(n=choice + 1, **params)),
        room=12,
        stop_ids=frozenset([3]),
        drive=lambda: None,
        finish=lambda ended: None,
    )
    return handle.sequences[choice]


def sampler(lane=lambda: LANE):
    return Sampler(lane, newline_ids=(5, 6), think_ids=(8, 9))


def random_logits(rows, seed=0):
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def some_sequences():
    return [
        sequence_of(prompt=range(1, 2 + row % 3), seed=row, **params)
        for row, params in enumerate([*PARAMS.values(), *PARAMS.values()])
    ]


def generated(sequences, together, num_steps=8):
    """What each sequence samples, step after step, from logits that depend on the step alone."""
    chosen = sampler()
    for step in range(num_steps):
        logits = random_logits(len(sequences), seed=step)
        if together:
            events = chosen.sample(sequences, logits)
        else:
            events = [chosen.sample([row], logits[i : i + 1])[0] for i, row in enumerate(sequences)]
        for row, event in zip(sequences, events, strict=True):
            row.take(event)
    return [row.generated for row in sequences]


def test_rows_of_all_kinds_are_sampled_as_each_is_alone():
    together = generated(some_sequences(), together=True)
    assert together == generated(some_sequences(), together=False)
    assert len({tuple(ids) for ids in together}) > len(PARAMS)


def test_rows_that_share_an_address_would_break_the_law(monkeypatch):
    alone = generated(some_sequences(), together=False)
    monkeypatch.setattr(
        Sampler, "_addresses", lambda self, batch: [sampler_module.Address(0, LANE)] * len(batch)
    )
    assert generated(some_sequences(), together=True) != alone


def test_rows_whose_parameters_treat_logits_alike_are_sampled_in_one_go(monkeypatch):
    calls = []
    sample = sampler_module.sample
    monkeypatch.setattr(
        sampler_module, "sample", lambda *args: calls.append(len(args[0])) or sample(*args)
    )
    alike = [
        sequence_of(seed=seed, max_new_tokens=seed + 1, stop=["."] * seed) for seed in range(5)
    ]
    sampler().sample([*alike, sequence_of(temperature=0.5)], random_logits(6))
    assert calls == [5, 1]


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_a_row_without_finite_logits_fails_alone(params, spoilt):
    rows = [sequence_of(seed=seed, **params) for seed in range(4)]
    logits = random_logits(4)
    sound = sampler().sample(rows, logits)
    logits[2, 7] = spoilt
    if "forced_tokens" in params:
        logits[2] = spoilt
    events = sampler().sample(rows, logits)
    expected = [*sound[:2], None, sound[3]]
    assert events == expected or ("forced_tokens" in params and events == sound)


def test_where_all_rows_fail_none_has_a_token():
    rows = [sequence_of(), sequence_of(temperature=0)]
    assert sampler().sample(rows, torch.full((2, V), torch.nan)) == [None, None]


def test_log_probabilities_are_the_models_own():
    logits = random_logits(2)
    params = {"temperature": 0.3, "banned_tokens": [int(logits[0].argmax())], "logprobs": 3}
    for row, event in enumerate(sampler().sample([sequence_of(**params) for _ in "ab"], logits)):
        expected = logits[row].double().log_softmax(-1)
        assert event.logprob == pytest.approx(float(expected[event.token_id]), abs=1e-6)
        best = expected.topk(3)
        assert [token for token, _ in event.top_logprobs] == best.indices.tolist()
        found = [value for _, value in event.top_logprobs]
        assert found == pytest.approx(best.values.tolist(), abs=1e-6)


@pytest.mark.parametrize(("asked", "length"), [(0, 0), (1, 1), (V + 5, V)])
def test_as_many_of_the_likeliest_tokens_are_reported_as_asked_for(asked, length):
    [event] = sampler().sample([sequence_of(logprobs=asked)], random_logits(1))
    assert event.logprob is not None
    assert len(event.top_logprobs) == length


def test_log_probabilities_change_no_token():
    rows = [sequence_of(seed=seed) for seed in range(6)]
    with_logprobs = [sequence_of(seed=seed, logprobs=2) for seed in range(6)]
    plain, reported = (sampler().sample(each, random_logits(6)) for each in (rows, with_logprobs))
    assert [event.token_id for event in plain] == [event.token_id for event in reported]
    assert all(event.logprob is None for event in plain)


def test_the_lane_is_asked_for_only_where_noise_is_drawn():
    def refuse():
        raise AssertionError("a greedy choice needs no noise")

    sampler(refuse).sample([sequence_of(temperature=0)], random_logits(1))
    with pytest.raises(AssertionError):
        sampler(refuse).sample([sequence_of()], random_logits(1))


def test_seed_lane_choice_and_position_all_have_a_say():
    logits = torch.zeros(1, 1000)

    def token(lane=LANE, **fields):
        [event] = sampler(lambda: lane).sample([sequence_of(**fields)], logits)
        return event.token_id

    variants = [{}, {"seed": 1}, {"choice": 1}, {"prompt": (1, 2, 3)}, {"lane": LANE + 1}]
    assert len({token(**variant) for variant in variants}) == len(variants)
