"""Each step of processing logits, and the chain of them, against transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as reference

from stepwell.generate.request import SamplingParams
from stepwell.generate.sampling import (
    History,
    process,
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


# Each step against transformers' class of the same name.


@each_kind
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 0.7, 1.7, 100.0])
def test_temperature_is_that_of_transformers(logits, temperature):
    expected = reference.TemperatureLogitsWarper(temperature)(IDS, logits)
    assert torch.equal(shaped(logits, temperature=temperature), expected)


@each_kind
@pytest.mark.parametrize("k", [1, 2, 5, 40, 41, 1_000])
def test_top_k_is_that_of_transformers(logits, k):
    assert torch.equal(shaped(logits, top_k=k), reference.TopKLogitsWarper(k)(IDS, logits))


@pytest.mark.parametrize("kind", ["ordinary", "flat", "huge", "with holes", "one left"])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.83, 0.95, 0.999])
def test_top_p_is_that_of_transformers(kind, p):
    expected = reference.TopPLogitsWarper(p)(IDS, LOGITS[kind])
    assert torch.equal(shaped(LOGITS[kind], top_p=p), expected)


@each_kind
@pytest.mark.parametrize("p", [0.1, 0.53, 0.83])
def test_top_p_keeps_as_much_as_transformers_where_tokens_tie(logits, p):
    expected = reference.TopPLogitsWarper(p)(IDS, logits).sort(dim=-1).values
    assert torch.equal(shaped(logits, top_p=p).sort(dim=-1).values, expected)


@each_kind
@pytest.mark.parametrize("p", [1e-300, 0.2, 0.5, 0.9, 1 - 1e-9])
def test_top_p_keeps_the_shortest_prefix_by_logit_then_id(logits, p):
    kept = shaped(logits, top_p=p)
    for row, kept_row in zip(logits.double().tolist(), kept.tolist(), strict=True):
        assert [token for token in range(V) if kept_row[token] > OUT] == nucleus(row, p)


def test_top_p_that_is_met_exactly_keeps_no_token_more():
    kept = process(torch.zeros(1, 4), SamplingParams(top_p=0.5))
    assert kept.tolist() == [[0, 0, OUT, OUT]]


@pytest.mark.parametrize("scale", [0.01, 1, 3, 10])
@pytest.mark.parametrize("p", [0.1, 0.8, 0.97])
def test_top_p_of_a_long_row_sorts_only_some_tokens_and_keeps_the_same(scale, p):
    logits = with_holes(random(3, 2_003, seed=5) * scale)
    kept = process(logits, SamplingParams(top_p=p))
    for row, kept_row in zip(logits, kept, strict=True):
        ids = nucleus(row.tolist(), p)
        expected = torch.full_like(row, OUT).index_copy(0, torch.tensor(ids), row[ids])
        assert torch.equal(kept_row, expected)


def nucleus(row, p):
    """Ids of the shortest prefix of tokens by (-logit, id) that holds p, in Python floats."""
    weights = [math.exp(logit - max(row)) for logit in row]
    total, held, ids = math.fsum(weights), 0.0, []
    for token in sorted(range(len(row)), key=lambda token: (-row[token], token)):
        if held >= p:
            break
        held += weights[token] / total
        ids.append(token)
    return sorted(token for token in ids if row[token] > OUT)


@each_kind
@pytest.mark.parametrize("p", [0.01, 0.2, 0.9, 1.0])
def test_min_p_is_that_of_transformers(logits, p):
    assert torch.equal(shaped(logits, min_p=p), reference.MinPLogitsWarper(p)(IDS, logits))


@each_kind
@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0])
@pytest.mark.parametrize("window", [0, 1, 8, 30, 100])
def test_repetition_penalty_is_that_of_transformers(logits, penalty, window):
    found = shaped(logits, repetition_penalty=penalty, repetition_window=window)
    expected = reference.RepetitionPenaltyLogitsProcessor(penalty)(IDS[:, -window:], logits)
    assert torch.equal(found, expected)


@each_kind
@pytest.mark.parametrize("size", [1, 2, 3, 4, 30, 31])
def test_no_repeat_ngram_is_that_of_transformers(logits, size):
    expected = reference.NoRepeatNGramLogitsProcessor(size)(IDS, logits)
    assert torch.equal(shaped(logits, no_repeat_ngram_size=size), expected)


@each_kind
def test_banned_tokens_are_bad_words_and_suppressed_tokens(logits):
    found = shaped(logits, banned_tokens=(0, 7, 40))
    bad_words = reference.NoBadWordsLogitsProcessor([[0], [7], [40]], eos_token_id=EOS[0])
    assert torch.equal(found, bad_words(IDS, logits))
    assert torch.equal(found, reference.SuppressTokensLogitsProcessor([0, 7, 40])(IDS, logits))


@each_kind
@pytest.mark.parametrize("fewest", [9, 10, 11])
def test_min_new_tokens_is_that_of_transformers(logits, fewest):
    found = shaped(logits, min_new_tokens=fewest)
    expected = reference.MinNewTokensLengthLogitsProcessor(20, fewest, list(EOS))(IDS, logits)
    assert torch.equal(found, expected)


@each_kind
def test_forced_token_is_that_of_transformers(logits):
    start = [History.of([row]) for row in range(B)]
    found = process(logits, SamplingParams(forced_tokens=(17,)), start)
    expected = reference.ForcedBOSTokenLogitsProcessor(17)(IDS[:, :1], logits)
    assert torch.equal(found, expected)


def test_forced_tokens_come_first_and_in_order():
    history = [History.of([1], [4] * count) for count in range(4)]
    params = SamplingParams(forced_tokens=(0, 12, 0), banned_tokens=(0, 12), top_p=0.9)
    found = process(LOGITS["ordinary"][:4], params, history)
    assert found.argmax(dim=-1)[:3].tolist() == [0, 12, 0]
    assert (found > OUT).sum(dim=-1).tolist()[:3] == [1, 1, 1]
    assert (found[3] > OUT).sum().item() > 1


@each_kind
def test_additive_penalties_are_those_of_openai(logits):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts tokens of the answer."""
    found = shaped(logits, presence_penalty=0.7, frequency_penalty=-0.4)
    expected = logits.double()
    for row, ids in enumerate(IDS[:, 20:].tolist()):
        for token in set(ids):
            expected[row, token] -= ids.count(token) * -0.4 + 0.7
    torch.testing.assert_close(found, expected.float(), rtol=2e-7, atol=2e-7)


def test_newlines_stop_after_a_run_of_them_in_the_answer():
    history = [
        History.of([1], [8, 5, 6]),
        History.of([1], [5, 5, 8]),
        History.of([5, 5], [6]),
        History.of([5, 5]),
        History.of([1], [8, 6, 6, 6]),
    ]
    logits = LOGITS["ordinary"][:5]
    found = process(logits, SamplingParams(newline_run_limit=2), history, newline_ids=NEWLINES)
    for row, at_limit in enumerate([True, False, False, False, True]):
        expected = logits[row].clone()
        expected[list(NEWLINES)] = OUT if at_limit else expected[list(NEWLINES)]
        assert torch.equal(found[row], expected)


START, END = 8, 9


def has_spent(ids, budget):
    """Whether a think section is open after ids and has had its tokens, read token by token."""
    thought = None
    for token in ids:
        if token == START:
            thought = 0
        elif token == END:
            thought = None
        elif thought is not None:
            thought += 1
    return thought is not None and thought >= budget


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_only_think_end_is_left_once_a_think_section_has_had_its_tokens(budget):
    generator = torch.Generator().manual_seed(budget)
    drawn = torch.tensor([5, 6, 6, 7, 7, 7, START, START, END])
    texts = [
        drawn[torch.randint(len(drawn), (1 + row % 15,), generator=generator)].tolist()
        for row in range(200)
    ]
    history = [History(torch.tensor(ids), 1) for ids in texts]
    logits = random(len(texts), V)
    params = SamplingParams(think_budget=budget, banned_tokens=[END])
    found = process(logits, params, history, think_ids=(START, END))
    banned = process(logits, SamplingParams(banned_tokens=[END]), history)
    only_end = torch.full((V,), OUT).index_fill(0, torch.tensor([END]), 0.0)
    spent = [has_spent(ids, budget) for ids in texts]
    assert 10 < sum(spent) < 190
    for row, is_spent in enumerate(spent):
        assert torch.equal(found[row], only_end if is_spent else banned[row])


def test_a_think_budget_yields_to_forced_tokens_alone():
    history = [History.of([1, START, 4, 4]) for _ in range(B)]
    params = {"think_budget": 2, "no_repeat_ngram_size": 1, "repetition_penalty": 3.0}
    for forced, token in (((), END), ((7,), 7)):
        settings = SamplingParams(**params, forced_tokens=forced, top_k=1)
        found = process(LOGITS["ordinary"], settings, history, think_ids=(START, END))
        assert found.argmax(dim=-1).tolist() == [token] * B


# The whole chain against transformers' generate.


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    widths = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=V, num_hidden_layers=1, eos_token_id=list(EOS), pad_token_id=0, **widths
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(30)
    return model


CHAINS = [
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "top_p": 0.9},
    {"repetition_penalty": 0.6, "no_repeat_ngram_size": 1, "suppress_tokens": [1, 2], "top_k": 7},
    {"bad_words_ids": [[4], [11]], "min_p": 0.2, "temperature": 2.5},
]


WARPERS = {"temperature", "top_k", "top_p", "min_p"}


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("settings", CHAINS, ids=str)
def test_the_chain_is_that_of_transformers_generate(peer, settings, do_sample):
    if not do_sample:
        settings = {key: settings[key] for key in settings if key not in WARPERS}
    torch.manual_seed(0)
    prompt = IDS[:3, :10]
    output = peer.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        **{"top_k": 0, **settings} if do_sample else settings,
        do_sample=do_sample,
        max_new_tokens=12,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    params = SamplingParams.from_generation_config({**settings, "do_sample": do_sample})
    for step, (raw, expected) in enumerate(zip(output.logits, output.scores, strict=True)):
        history = [History(row[: 10 + step], 10) for row in output.sequences]
        found = process(raw, params, history, eos_ids=EOS)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_another_order_of_the_chain_would_be_noticed():
    """The control: top-p before the temperature keeps other tokens."""
    logits = LOGITS["ordinary"]
    right = shaped(logits, temperature=0.5, top_p=0.8)
    assert not torch.equal(shaped(logits, top_p=0.8) / 0.5, right)
