"""Verification leaves the target's distribution as it is; broken verifiers fail the same test.

The reference is enumerated in float64: the chance of each text of LENGTH tokens over a vocabulary
of V, where the logits depend on all tokens before and are processed with penalties and top-p. Texts
are generated as an engine would, in rounds of drafts of uneven lengths. A distribution is compared
at each position, in pairs and whole, and fails beyond what chance does once in 10,000 times.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from support.chi_square import is_distributed

from stepwell.generate import noise, verify
from stepwell.generate.noise import Address, Purpose, lane_of
from stepwell.generate.request import SamplingParams
from stepwell.generate.sampling import History, process, sample
from stepwell.generate.verify import (
    Verified,
    verify_by_equality,
    verify_by_rejection,
)

V, LENGTH, ROWS = 5, 3, 4_000
NAN, OUT = float("nan"), float("-inf")
PROMPT = (0, 2)
TARGET, DRAFTER = lane_of("a target"), lane_of("a drafter")
PARAMS = {
    "plain": SamplingParams(),
    "shaped": SamplingParams(
        temperature=0.8, top_p=0.93, presence_penalty=0.4, repetition_penalty=1.2
    ),
}
each_shape = pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)


@cache
def logits_after(seed, params, text):
    """Processed logits [V] of a random model after the prompt and these tokens."""
    number = sum((token + 1) * (V + 1) ** place for place, token in enumerate(text))
    generator = torch.Generator().manual_seed(seed * 100_003 + number)
    raw = torch.randn(1, V, generator=generator) * 1.3
    return process(raw, params, [History.of(PROMPT, text)])[0]


def target_after(params, text):
    return logits_after(1, params, text)


def drafter_after(params, text):
    """A drafter that is wrong everywhere, and never says what the shaped target may have left."""
    return logits_after(2, params, text)


def addresses(texts, lane=TARGET, purpose=Purpose.SAMPLE):
    return [
        Address(11, lane, row, len(PROMPT) + len(text), purpose) for row, text in enumerate(texts)
    ]


# Drafters: what is drafted after each text, so many tokens each, and the logits drawn from.


def drawn(texts, counts, params, lane=DRAFTER, purpose=Purpose.DRAFT):
    drafts = [() for _ in texts]
    for _ in range(max(counts)):
        due = [row for row, count in enumerate(counts) if len(drafts[row]) < count]
        grown = [(*texts[row], *drafts[row]) for row in due]
        logits = torch.stack([drafter_after(params, text) for text in grown])
        every = addresses([(*text, *draft) for text, draft in zip(texts, drafts, strict=True)])
        places = [every[row]._replace(lane=lane, purpose=purpose) for row in due]
        for row, token in zip(due, sample(logits, params, places).tolist(), strict=True):
            drafts[row] += (token,)
    return drafts


def coupled(texts, counts, params):
    """The drafter's draws with the target's own noise."""
    return drawn(texts, counts, params, TARGET, Purpose.SAMPLE)


def looked_up(texts, counts, params):
    """A draft that depends on the text alone, as prompt lookup's does; its last token is V - 1."""
    return [
        tuple((sum(text) + place) % (V - 1) for place in range(count - 1)) + (V - 1,) * (count > 0)
        for text, count in zip(texts, counts, strict=True)
    ]


# Verifiers: what comes of drafts after texts.


def packed(texts, drafts, params):
    """The target's logits at each drafted token and after, the drafter's at each drafted one."""
    target, drafter = [], []
    for text, draft in zip(texts, drafts, strict=True):
        befores = [(*text, *draft[:end]) for end in range(len(draft) + 1)]
        target += [target_after(params, before) for before in befores]
        drafter += [drafter_after(params, before) for before in befores[:-1]]
    return torch.stack(target), torch.stack([*drafter, torch.zeros(V)])[:-1]


def by_equality(texts, drafts, params):
    target, _ = packed(texts, drafts, params)
    return verify_by_equality(target, drafts, params, addresses(texts))


def by_rejection(texts, drafts, params):
    target, drafter = packed(texts, drafts, params)
    return verify_by_rejection(target, drafts, params, addresses(texts), drafter)


def by_rejection_of_a_point(texts, drafts, params):
    target, _ = packed(texts, drafts, params)
    return verify_by_rejection(target, drafts, params, addresses(texts))


def outcomes(result):
    """How many tokens stay and which comes next, row by row."""
    return list(zip(result.num_accepted.tolist(), result.next_ids.tolist(), strict=True))


def generated(drafter, verifier, params, rows):
    """Texts of LENGTH tokens each, and how many of their tokens were drafted ones that stayed."""
    texts, accepted, step = [()] * rows, 0, 0
    while any(len(text) < LENGTH for text in texts):
        open_rows = [row for row, text in enumerate(texts) if len(text) < LENGTH]
        counts = [0] * rows
        for row in open_rows:
            counts[row] = min((row + step) % 4, LENGTH - 1 - len(texts[row]))
        drafts = drafter(texts, counts, params)
        verified = verifier(texts, drafts, params)
        for row, (count, token) in enumerate(outcomes(verified)):
            if len(texts[row]) < LENGTH:
                texts[row] = (*texts[row], *drafts[row][:count], token)
                accepted += count
        step += 1
    return texts, accepted


@cache
def chances(params):
    """The chance of each text of LENGTH tokens, in float64."""
    found = {(): 1.0}
    for _ in range(LENGTH):
        found = {
            (*text, token): chance * share
            for text, chance in found.items()
            for token, share in enumerate(
                target_after(params, text).double().softmax(dim=-1).tolist()
            )
        }
    return found


def is_exact(drafter, verifier, params, rows=ROWS):
    texts, accepted = generated(drafter, verifier, params, rows)
    assert accepted > rows / 20
    return is_distributed(texts, chances(params))


EXACT = {
    "equality": (drawn, by_equality),
    "equality, shared noise": (coupled, by_equality),
    "equality, lookup": (looked_up, by_equality),
    "rejection": (drawn, by_rejection),
    "rejection, lookup": (looked_up, by_rejection_of_a_point),
    "rejection, draws taken for a lookup": (drawn, by_rejection_of_a_point),
}


@each_shape
@pytest.mark.parametrize(("drafter", "verifier"), EXACT.values(), ids=EXACT)
def test_the_output_has_the_distribution_of_the_target(drafter, verifier, params):
    assert is_exact(drafter, verifier, params)


# Broken verifiers, each of which must fail that test.


def ended(texts, drafts, counts, params, logits_of=lambda logits, rejected: logits):
    """So many tokens of each draft stay; RECOVER then draws from the target's logits there."""
    target, _ = packed(texts, drafts, params)
    starts = itertools.accumulate((len(draft) + 1 for draft in drafts), initial=0)
    decisive = [start + count for start, count in zip(starts, counts, strict=False)]
    rejected = [(*draft, -1)[count] for draft, count in zip(drafts, counts, strict=True)]
    logits = logits_of(target[decisive], torch.tensor(rejected)[:, None])
    fresh = sample(logits, params, addresses(texts, purpose=Purpose.RECOVER))
    return Verified(torch.tensor(counts), fresh)


def accepting_always(texts, drafts, params):
    return ended(texts, drafts, [len(draft) for draft in drafts], params)


def recovering_from_the_target(texts, drafts, params):
    counts = by_rejection(texts, drafts, params).num_accepted.tolist()
    return ended(texts, drafts, counts, params)


def recovering_from_all_but_the_rejected(texts, drafts, params):
    """What is right for a lookup alone."""

    def without(logits, rejected):
        return logits.masked_fill(torch.arange(V) == rejected, OUT)

    counts = by_rejection(texts, drafts, params).num_accepted.tolist()
    return ended(texts, drafts, counts, params, without)


def replacing_with_fresh_noise(texts, drafts, params):
    """Equality, with a new draw for the token that differs: it may be the rejected one again."""
    counts = by_equality(texts, drafts, params).num_accepted.tolist()
    return ended(texts, drafts, counts, params)


def with_noise_of(purpose, *, accept=False, recover=False):
    """The rejection rule, with the noise of another purpose to accept or recover by."""

    def verifier(texts, drafts, params):
        def moved(given):
            return [each._replace(purpose=purpose, lane=DRAFTER) for each in given]

        with pytest.MonkeyPatch.context() as patch:
            if accept:
                patch.setattr(verify, "uniform", lambda at, ids: noise.uniform(moved(at), ids))
            if recover:
                patch.setattr(verify, "sample", lambda x, how, at: sample(x, how, moved(at)))
            return by_rejection(texts, drafts, params)

    return verifier


def told_another_drafter(texts, drafts, params):
    """The rejection rule with logits that the drafter did not draw from."""
    target, drafter = packed(texts, drafts, params)
    return verify_by_rejection(target, drafts, params, addresses(texts), drafter.roll(1, dims=1))


def shifted_by_one(texts, drafts, params):
    """The rejection rule with the target's logits of the position after."""
    target, drafter = packed(texts, drafts, params)
    return verify_by_rejection(target.roll(-1, dims=0), drafts, params, addresses(texts), drafter)


BROKEN = {
    "accepts always": (drawn, accepting_always),
    "recovers from p": (drawn, recovering_from_the_target),
    "recovers from p without the token": (drawn, recovering_from_all_but_the_rejected),
    "accepts by the noise of the draft": (drawn, with_noise_of(Purpose.DRAFT, accept=True)),
    "drafted with the noise to accept by": (
        lambda texts, counts, params: drawn(texts, counts, params, TARGET, Purpose.ACCEPT),
        by_rejection,
    ),
    "told another drafter": (drawn, told_another_drafter),
    "one position late": (drawn, shifted_by_one),
    "equality, replaced by a fresh draw": (drawn, replacing_with_fresh_noise),
}


@each_shape
@pytest.mark.parametrize(("drafter", "verifier"), BROKEN.values(), ids=BROKEN)
def test_a_broken_verifier_has_another_distribution(drafter, verifier, params):
    assert not is_exact(drafter, verifier, params)


def test_even_the_faint_mark_of_recovering_by_the_noise_of_the_draft_is_seen():
    params, verifier = PARAMS["shaped"], with_noise_of(Purpose.DRAFT, recover=True)
    assert not is_exact(drawn, verifier, params, 3 * ROWS)
    assert is_exact(drawn, by_rejection, params, 3 * ROWS)


# How much is accepted.


def share_accepted(drafter, verifier, params):
    """How often a single drafted first token stays, of the target's and the drafter's overlap."""
    texts = [()] * ROWS
    drafts = drafter(texts, [1] * ROWS, params)
    p, q = (after(params, ()).double().softmax(-1) for after in (target_after, drafter_after))
    return verifier(texts, drafts, params).num_accepted.double().mean().item(), p, q


@each_shape
def test_rejection_accepts_as_often_as_the_distributions_overlap(params):
    share, p, q = share_accepted(drawn, by_rejection, params)
    assert share == pytest.approx(torch.minimum(p, q).sum().item(), abs=0.03)


@each_shape
def test_equality_accepts_as_often_as_independent_draws_agree(params):
    share, p, q = share_accepted(drawn, by_equality, params)
    assert share == pytest.approx((p * q).sum().item(), abs=0.03)


@each_shape
def test_shared_noise_accepts_at_least_what_is_known_of_gumbel_coupling(params):
    share, p, q = share_accepted(coupled, by_equality, params)
    distance = 1 - torch.minimum(p, q).sum().item()
    assert share > (1 - distance) / (1 + distance) - 0.03
    assert share > (p * q).sum().item() + 0.02


@each_shape
def test_a_lookup_is_accepted_as_often_as_the_target_says_it(params):
    share, p, _ = share_accepted(looked_up, by_rejection_of_a_point, params)
    assert share == pytest.approx(p[V - 1].item(), abs=0.03)


def test_a_drafter_that_is_the_target_is_never_rejected():
    logits = torch.randn(4 * 300, 700, generator=torch.Generator().manual_seed(3)) * 4
    drafted = logits.view(300, 4, 700)[:, :3].flatten(0, 1)
    tokens = sample(drafted, SamplingParams(), at(900, purpose=Purpose.DRAFT))
    drafts = tokens.view(300, 3).tolist()
    result = verify_by_rejection(logits, drafts, SamplingParams(), at(300), drafted)
    assert result.num_accepted.tolist() == [3] * 300


def at(count, **fields):
    return [Address(5, TARGET, row, 17 + 3 * row, **fields) for row in range(count)]
