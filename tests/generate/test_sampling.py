"""Choosing a token from processed logits, and what moves no choice."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stepwell.errors import ConfigError, LogitsError, ShapeError
from stepwell.generate.noise import Address, exponential, lane_of
from stepwell.generate.request import SamplingParams
from stepwell.generate.sampling import (
    History,
    choose,
    log_softmax,
    process,
    sample,
)

B, V, S = 7, 41, 30
EOS, NEWLINES = (3, 9), (5, 6)
OUT = float("-inf")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_holes(logits):
    holes = torch.rand(logits.shape, generator=torch.Generator().manual_seed(9)) < 0.3
    return logits.masked_fill(holes, OUT)


LOGITS = {
    "ordinary": random(B, V) * 3,
    "flat": random(B, V) * 0.01,
    "with ties": (random(B, V) * 2).round(),
    "all tied": torch.zeros(B, V),
    "huge": random(B, V) * 1e4,
    "tiny": random(B, V) * 1e-30,
    "with holes": with_holes(random(B, V) * 3),
    "one left": torch.full((B, V), OUT).index_fill(1, torch.tensor([8]), 1.5),
}
IDS = torch.randint(0, 6, (B, S), generator=torch.Generator().manual_seed(1)) * 7 % V
HISTORY = [History(row, 20) for row in IDS]

each_kind = pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)


def shaped(logits, **params):
    return process(logits, SamplingParams(**params), HISTORY, eos_ids=EOS, newline_ids=NEWLINES)


def addresses(count, **fields):
    lane = lane_of("a model")
    return [Address(seed=4, lane=lane, position=index, **fields) for index in range(count)]


WEIGHTS = torch.tensor([0.02, 0.3, 0.001, 0.25, 0.1, 0.05, 0.179, 0.1])
DRAWS = 20_000


def chi_square(ids, probabilities):
    """Of draws against probabilities; tokens of probability 0 must not have been drawn."""
    counts = torch.bincount(ids, minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double() * len(ids)
    return ((counts[possible] - expected) ** 2 / expected).sum().item()


LIMIT = 24.3  # The 99.9th percentile of chi-square with 7 degrees of freedom.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_sampled_frequencies_are_the_softmax(temperature, offset):
    logits = (WEIGHTS.log() + offset).expand(DRAWS, -1)
    params = SamplingParams(temperature=temperature)
    ids = sample(process(logits, params), params, addresses(DRAWS))
    powered = WEIGHTS.double() ** (1 / temperature)
    assert chi_square(ids, powered / powered.sum()) < LIMIT


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 3}, [1, 3, 6]),
        ({"top_p": 0.75}, [1, 3, 4, 6]),
        ({"min_p": 0.3}, [1, 3, 4, 6, 7]),
        ({"banned_tokens": (1, 0)}, [2, 3, 4, 5, 6, 7]),
    ],
    ids=str,
)
def test_sampled_frequencies_are_the_softmax_over_what_is_left(settings, kept):
    params = SamplingParams(**settings)
    ids = sample(process(WEIGHTS.log().expand(DRAWS, -1), params), params, addresses(DRAWS))
    left = torch.zeros(8).index_copy(0, torch.tensor(kept), WEIGHTS[kept])
    assert chi_square(ids, left / left.sum()) < LIMIT


def test_noise_of_another_shape_would_fail_the_frequencies():
    """The control: uniform in the place of exponential noise draws from another distribution."""
    logits = WEIGHTS.log().expand(DRAWS, -1)
    wrong = 1 - (-exponential(addresses(DRAWS), 8)).exp()
    assert chi_square(choose(logits, SamplingParams(), wrong), WEIGHTS) > 4 * LIMIT


def test_a_constant_added_to_a_row_moves_no_choice():
    eighths = (random(500, V) * 16).round() / 8  # float32 still holds them beside 2^20.
    params, noise = SamplingParams(), exponential(addresses(500), V)
    assert torch.equal(choose(eighths + 2**20, params, noise), choose(eighths, params, noise))


EVERYTHING = [
    {},
    {"temperature": 0},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"top_p": 0.9, "min_p": 0.01, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.2, "repetition_window": 4, "no_repeat_ngram_size": 2},
    {"banned_tokens": (1, 2), "min_new_tokens": 4, "newline_run_limit": 1},
    {"forced_tokens": (4, 5, 6), "temperature": 1.3},
]


@pytest.mark.parametrize("settings", EVERYTHING, ids=str)
@pytest.mark.parametrize("width", [V, 5_003])
def test_company_and_order_of_rows_move_no_bit(settings, width):
    params, rows = SamplingParams(**settings), 19
    logits = random(rows, width, seed=3) * 4
    history = [History(IDS[row % B, : 2 + row], row % 3 + 1) for row in range(rows)]
    where = addresses(rows)

    def run(chosen):
        some = [history[row] for row in chosen]
        shaped = process(logits[chosen], params, some, eos_ids=EOS, newline_ids=NEWLINES)
        ids = sample(shaped, params, [where[row] for row in chosen])
        return shaped, ids, log_softmax(logits[chosen])

    together = run(list(range(rows)))
    for chosen in ([0], [18], [7, 3], [11, 2, 5], list(range(rows))[::-1], list(range(0, 19, 2))):
        for whole, part in zip(together, run(chosen), strict=True):
            assert torch.equal(whole[chosen], part)


def test_a_generator_consumed_in_order_of_arrival_would_move_choices():
    """The control: with it, a request's tokens depend on who came before."""
    logits = random(64, V, seed=3)

    def consumed(rows):
        generator = torch.Generator().manual_seed(0)
        noise = torch.empty(len(rows), V).exponential_(generator=generator)
        return choose(logits[rows], SamplingParams(), noise)

    assert not torch.equal(consumed(list(range(64)))[32:], consumed(list(range(32, 64))))


@pytest.mark.parametrize("settings", EVERYTHING, ids=str)
def test_sample_draws_what_choose_would_with_the_noise_of_all_tokens(settings):
    params = SamplingParams(**settings)
    logits = process(random(B, 997) * 4, params, HISTORY, eos_ids=EOS, newline_ids=NEWLINES)
    noise = exponential(addresses(B), 997)
    assert torch.equal(sample(logits, params, addresses(B)), choose(logits, params, noise))


def test_greedy_takes_the_lowest_of_tied_ids_and_reads_no_noise():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-0.0, 0.0, -1.0, 0.0], [OUT, OUT, 5.0, 5.0]])
    assert choose(logits, SamplingParams(temperature=0)).tolist() == [1, 0, 2]
    assert choose(logits, SamplingParams(do_sample=False), torch.rand(3, 4)).tolist() == [1, 0, 2]


def test_sampling_takes_the_lowest_of_tied_ids():
    tied = choose(torch.zeros(2, 5), SamplingParams(), torch.full((2, 5), 0.7))
    assert tied.tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [1e-3, 1e-4, 1e-5])
def test_sampling_becomes_greedy_as_temperature_goes_to_zero(temperature):
    logits = random(B, V).argsort(dim=-1).float()
    params = SamplingParams(temperature=temperature)
    assert not params.greedy
    ids = sample(process(logits, params), params, addresses(B))
    assert torch.equal(ids, logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0, 1e-320, 1e-40, 9e-6])
@each_kind
def test_the_smallest_temperatures_are_greedy_and_never_overflow(logits, temperature):
    params = SamplingParams(temperature=temperature, top_k=3, top_p=0.5, min_p=0.5)
    assert process(logits, params) is logits
    ids = sample(logits, params, addresses(B))
    assert ids.tolist() == [row.index(max(row)) for row in logits.tolist()]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 0, "top_p": 1, "temperature": 1, "min_p": 0, "repetition_penalty": 1},
        {"temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.5},
        {"do_sample": False, "temperature": 0.5},
        {"repetition_window": 5, "presence_penalty": 0, "no_repeat_ngram_size": 0, "seed": 3},
    ],
    ids=str,
)
def test_parameters_that_are_off_do_nothing_at_all(settings):
    logits = LOGITS["ordinary"]
    assert process(logits, SamplingParams(**settings)) is logits


class Dispatched(TorchDispatchMode):
    """The names of torch's operations while it is entered."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_greedy_costs_one_argmax_and_a_check():
    params = SamplingParams(temperature=0)
    with Dispatched() as dispatched:
        sample(process(LOGITS["ordinary"], params), params, addresses(B))
    assert dispatched.names == ["max", "sub", "any", "_local_scalar_dense"]


@pytest.mark.parametrize("settings", EVERYTHING, ids=str)
def test_logits_are_never_written_to(settings):
    logits = LOGITS["ordinary"].clone()
    params = SamplingParams(**settings)
    sample(shaped(logits, **settings), params, addresses(B))
    assert torch.equal(logits, LOGITS["ordinary"])


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, OUT])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {},
        {"top_k": 3, "top_p": 0.9, "min_p": 0.1},
        {"top_p": 0.9, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_rows_without_a_sound_highest_logit_are_named_and_no_others(settings, spoilt):
    logits = LOGITS["ordinary"].clone()
    logits[[1, 4], :] = spoilt if spoilt == OUT else logits[[1, 4], :]
    logits[[1, 4], 11] = spoilt
    shaped_logits = shaped(logits, **settings)
    params = SamplingParams(**settings)
    with pytest.raises(LogitsError, match=r"rows \[1, 4\]") as caught:
        sample(shaped_logits, params, addresses(B))
    assert caught.value.rows == (1, 4)
    sound = [0, 2, 3, 5, 6]
    assert torch.equal(shaped_logits[sound], shaped(LOGITS["ordinary"], **settings)[sound])


def test_log_softmax_is_that_of_float64():
    logits = random(B, 5_003) * 8
    expected = logits.double() - logits.double().logsumexp(dim=-1, keepdim=True)
    torch.testing.assert_close(log_softmax(logits).double(), expected, rtol=1e-6, atol=2e-6)
    assert log_softmax(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        {"banned_tokens": (41,)},
        {"forced_tokens": (99,)},
        {"min_new_tokens": 50},
        {"think_budget": 1},
    ],
    ids=str,
)
def test_ids_beyond_the_vocabulary_are_refused(settings):
    params, ids = SamplingParams(**settings), {"eos_ids": [77], "think_ids": [1, 41]}
    with pytest.raises(ConfigError, match="expected ids from 0 to 40"):
        process(LOGITS["ordinary"], params, HISTORY, **ids)


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 2}, {"min_new_tokens": 2}, {"forced_tokens": (1,)}], ids=str
)
def test_one_history_is_asked_for_each_row(settings):
    with pytest.raises(ShapeError, match="6 histories for 7 rows"):
        process(LOGITS["ordinary"], SamplingParams(**settings), HISTORY[:6], eos_ids=EOS)


@pytest.mark.parametrize("noise", [None, torch.ones(B, V - 1)], ids=["none", "of another width"])
def test_sampling_without_fitting_noise_is_refused(noise):
    with pytest.raises(ShapeError, match=r"expected \[7, 41\]"):
        choose(LOGITS["ordinary"], SamplingParams(), noise)
