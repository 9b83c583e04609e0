"""Laws of selection: given that a decision read the draft and went on, the target is still itself.

Two random models over V tokens; the first drafts LENGTH tokens, a decision reads them, and where it
goes on the second verifies. Its distribution is enumerated in float64. Two claims: with the same
seed it says what it says alone (pathwise), and what it says after such a decision is distributed as
without one (conditional). Four engines that look right break the second, and are caught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from support.chi_square import is_distributed

from stepwell.generate import sampler as sampler_module
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.finished_draft import FinishedDraft
from stepwell.generate.noise import Address, lane_of, uniform
from stepwell.generate.request import Request, SamplingParams, TokenEvent
from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer

V, LENGTH, PROMPT, COUNT = 4, 3, (0, 2), 5_000
CONFIG = ModelConfig(
    vocab_size=V, context_length=16, width=8, num_layers=1, num_heads=2, tie_embeddings=False
)
Text = tuple[int, ...]


@cache
def model(seed: int) -> Transformer:
    """A model that is neither sure of everything nor of nothing."""
    made = Transformer(CONFIG)
    made.initialize(seed)
    with torch.no_grad():
        made.head.weight.mul_(6)  # type: ignore[union-attr]
    return made.eval()


@cache
def chances(seed: int) -> dict[Text, float]:
    """How likely each text is to a model, by enumeration in float64."""
    found: dict[Text, float] = {(): 1.0}
    for _ in range(LENGTH):
        ids = torch.tensor([[*PROMPT, *text] for text in found])
        with torch.inference_mode():
            shares = model(seed)(ids)[:, -1].double().softmax(-1).tolist()
        found = {
            (*text, token): chance * share
            for (text, chance), row in zip(found.items(), shares, strict=True)
            for token, share in enumerate(row)
        }
    return found


def said(
    engine: InferenceEngine, seeds: Sequence[int], drafts: Sequence[Text | None]
) -> list[Text]:
    """What a model says to the prompt with each of these seeds."""
    handles = [
        engine.submit(
            Request(PROMPT, SamplingParams(max_new_tokens=LENGTH, seed=seed)),
            draft=None if draft is None else FinishedDraft(draft),
        )
        for seed, draft in zip(seeds, drafts, strict=True)
    ]
    return [
        tuple(event.token_id for event in handle if isinstance(event, TokenEvent))
        for handle in handles
    ]


def engine(seed: int) -> InferenceEngine:
    return InferenceEngine(model(seed), max_rows=256, eos_ids=[])


@cache
def drafted() -> list[Text]:
    """The drafts of seeds 0 to COUNT - 1."""
    return said(engine(1), range(COUNT), [None] * COUNT)


def goes_on(draft: Text) -> bool:
    """A decision that reads the draft's tokens: it goes on with some of them only."""
    return draft[0] in (1, 3) and draft[1] != 2


def after_going_on(
    target: InferenceEngine, decision: Callable[[Text], bool] = goes_on
) -> list[Text]:
    """What the target says to those that the decision let go on, from their drafts."""
    drafts = drafted()
    seeds = [seed for seed in range(COUNT) if decision(drafts[seed])]
    assert COUNT / 10 < len(seeds) < COUNT / 2
    return said(target, seeds, [drafts[seed] for seed in seeds])


def test_drafts_and_targets_are_distributed_as_their_models_are() -> None:
    assert is_distributed(drafted(), chances(1))
    assert is_distributed(said(engine(2), range(COUNT), [None] * COUNT), chances(2))
    assert not is_distributed(drafted(), chances(2)), "a control: the two models differ"


def test_pathwise_the_target_says_what_it_says_alone() -> None:
    seeds = [seed for seed in range(COUNT) if goes_on(drafted()[seed])]
    alone = said(engine(2), seeds, [None] * len(seeds))
    assert after_going_on(engine(2)) == alone


def test_given_that_it_went_on_the_target_is_distributed_as_its_model_is() -> None:
    assert is_distributed(after_going_on(engine(2)), chances(2))


def test_what_was_drafted_is_not_distributed_so_given_that_it_went_on() -> None:
    """A control: the decision does select."""
    chosen = [draft for draft in drafted() if goes_on(draft)]
    assert not is_distributed(chosen, chances(1))


def test_a_verifier_that_keeps_every_draft_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "num_equal", lambda draft, own: len(draft))
    monkeypatch.setattr(
        sampler_module, "_kept", lambda ids, sampled: _as_drafted(ids, list(sampled))
    )
    assert not is_distributed(after_going_on(engine(2)), chances(2))


def _as_drafted(ids: Sequence[int], events: list[TokenEvent]) -> list[TokenEvent]:
    kept = [TokenEvent(0, token) for token in ids]
    return [*kept, *events[len(kept) :]]


def test_a_lane_that_two_stages_share_is_caught() -> None:
    """Then the noise that made the draft is the target's: the decision has read it."""
    target = engine(2)
    target.__dict__["lane"] = engine(1).lane
    assert not is_distributed(after_going_on(target), chances(2))


def test_a_probe_that_samples_with_the_targets_noise_is_caught() -> None:
    """A decision may look at the target's probabilities, not at what it is about to say."""
    alone = said(engine(2), range(COUNT), [None] * COUNT)
    seeds = [seed for seed in range(COUNT) if alone[seed][0] == drafted()[seed][0]]
    after = said(engine(2), seeds, [drafted()[seed] for seed in seeds])
    assert not is_distributed(after, chances(2))


def test_a_draft_made_again_is_new_only_where_it_counts_the_attempt() -> None:
    """A second draft after the first was read: with the attempt in its noise's address it is
    distributed as drafts are, without it is the first one again."""
    first = torch.tensor([list(chances(1).values())]).log()
    texts = list(chances(1))
    lane = lane_of("a drafter")

    def drawn(attempt: int) -> list[Text]:
        addresses = [Address(seed, lane, attempt=attempt) for seed in range(COUNT)]
        noise = -torch.log1p(-uniform(addresses, len(texts)))
        return [texts[place] for place in (first - noise.log()).argmax(-1).tolist()]

    once = drawn(0)
    assert is_distributed(once, chances(1))
    unhappy = [seed for seed, text in enumerate(once) if not goes_on(text)]
    again, same = drawn(1), drawn(0)
    assert is_distributed([again[seed] for seed in unhappy], chances(1))
    assert not is_distributed([same[seed] for seed in unhappy], chances(1))
