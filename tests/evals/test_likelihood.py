"""log P(continuation | context) is what a forward over the whole says, however it is computed."""

from __future__ import annotations

import math

import pytest
import torch

from stepwell.errors import LogitsError, PromptError
from stepwell.evals.likelihood import Pair, begin_id, encode_pair, log_likelihoods
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import Scale, ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.text.tokenizer import Tokenizer

CONTEXT = 16
VOCABULARY = 40


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(
        ModelConfig(
            vocab_size=VOCABULARY, context_length=CONTEXT, width=16, num_layers=2, num_heads=2
        )
    ).double()
    made.initialize(seed=1)
    return made


def pairs_of(count: int) -> list[Pair]:
    generator = torch.Generator().manual_seed(5)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())

    return [Pair(ids(1, 9), ids(1, 6)) for _ in range(count)]


def by_hand(model: Transformer, pair: Pair) -> tuple[float, bool]:
    """The same, one pair and one token after the other."""
    ids, total, greedy = list(pair.context), 0.0, True
    for token in pair.continuation:
        with torch.no_grad():
            logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
        ids.append(token)
    return total, greedy


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_sum_over_tokens_in_every_batch(model: Transformer, batch_size: int) -> None:
    pairs = pairs_of(20)
    best = int(model(torch.tensor([[7]]))[0, -1].argmax())
    pairs += [Pair((7,), (best,)), Pair((7,), ((best + 1) % VOCABULARY,))]
    found = log_likelihoods(model, pairs, batch_size=batch_size)
    for pair, (logprob, greedy) in zip(pairs, found, strict=True):
        expected = by_hand(model, pair)
        assert (logprob, greedy) == (pytest.approx(expected[0], abs=1e-9), expected[1])
    assert [each.is_greedy for each in found[-2:]] == [True, False]


def test_the_probabilities_of_all_next_tokens_are_one(model: Transformer) -> None:
    pairs = [Pair((1, 2, 3), (token,)) for token in range(VOCABULARY)]
    assert math.fsum(math.exp(each.logprob) for each in log_likelihoods(model, pairs)) == (
        pytest.approx(1)
    )


def test_pairs_that_differ_in_the_last_token_are_read_once(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **o: rows.append(len(ids)) or real(ids, **o))
    log_likelihoods(model, [Pair((1, 2), (5, token)) for token in range(8)])
    log_likelihoods(model, [Pair((1, 2), (token, 5)) for token in range(8)])
    assert rows == [1, 8]


def test_what_does_not_fit_loses_its_left(model: Transformer) -> None:
    long = Pair(tuple(range(30)), (3, 4))
    short = Pair(tuple(range(30))[-(CONTEXT - 1) :], (3, 4))
    [first, second] = log_likelihoods(model, [long, short])
    assert first == second
    assert len(short.context + short.continuation) == CONTEXT + 1  # the last is not read
    assert log_likelihoods(model, [Pair(short.context[1:], (3, 4))]) != [first]


def test_a_continuation_longer_than_the_context_is_refused(model: Transformer) -> None:
    assert log_likelihoods(model, [Pair((1,), (2,) * CONTEXT)])
    with pytest.raises(PromptError, match="17 tokens, more than the model's context of 16"):
        log_likelihoods(model, [Pair((1,), (2,) * (CONTEXT + 1))])


def test_interventions_change_the_scores_and_know_where_the_context_ends(
    model: Transformer,
) -> None:
    pairs = pairs_of(6)
    plain = log_likelihoods(model, pairs)
    zeroed = log_likelihoods(model, pairs, interventions=[ZeroHeads({0: [0]})])
    assert all(abs(a.logprob - b.logprob) > 1e-6 for a, b in zip(plain, zeroed, strict=True))
    scale = {"point": "logits", "factor": 0.0}
    flat = log_likelihoods(model, pairs, interventions=[Scale(**scale, positions="generated")])
    for pair, each in zip(pairs, flat, strict=True):
        head = log_likelihoods(model, [Pair(pair.context, pair.continuation[:1])])[0].logprob
        rest = -(len(pair.continuation) - 1) * math.log(VOCABULARY)
        assert each.logprob == pytest.approx(head + rest)


def test_logits_that_are_no_numbers_are_an_error(model: Transformer) -> None:
    broken = Transformer(model.config)
    broken.initialize(seed=1)
    with torch.no_grad():
        broken.final_norm.weight.fill_(math.nan)
    with pytest.raises(LogitsError):
        log_likelihoods(broken, [Pair((1,), (2,))])


def test_nothing_asked_is_nothing_answered(model: Transformer) -> None:
    assert log_likelihoods(model, []) == []


# -- texts -----------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz :"


def test_spaces_at_the_border_go_to_the_continuation() -> None:
    tokenizer = Tokenizer.train_bpe(["a dog ran up the hill " * 3], 290)
    pair = encode_pair(tokenizer, "a dog ", "ran up")
    assert tokenizer.decode(pair.context) == "a dog"
    assert tokenizer.decode(pair.continuation) == " ran up"
    assert pair == encode_pair(tokenizer, "a dog", " ran up")
    assert list(sum(pair, ())) == tokenizer.encode("a dog ran up")


@pytest.mark.parametrize(
    ("roles", "first"), [({"bos": "<s>", "eos": "</s>"}, "<s>"), ({"eos": "</s>"}, "</s>")]
)
def test_an_empty_context_is_the_token_that_begins_or_ends_a_text(
    roles: dict[str, str], first: str
) -> None:
    tokenizer = Tokenizer.character(LETTERS, roles)
    assert begin_id(tokenizer) == tokenizer.id_of(first)
    pair = encode_pair(tokenizer, "", "ab")
    assert pair == Pair((tokenizer.id_of(first),), tuple(tokenizer.encode("ab")))


def test_where_nothing_can_be_scored_it_is_said() -> None:
    tokenizer = Tokenizer.character(LETTERS)
    with pytest.raises(PromptError, match="no token that begins or ends a text"):
        encode_pair(tokenizer, "", "ab")
    with pytest.raises(PromptError, match="Nothing of ''"):
        encode_pair(tokenizer, "ab", "")
