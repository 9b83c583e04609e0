"""A model that transformers runs answers as our engine does, in any company and from any draft."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import CONTEXT, GREEDY, PROMPTS, save_tiny, word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from stepwell.cascade.stage import Draft, Observe, Reply
from stepwell.cascade.stages import rows
from stepwell.cascade.stages.hugging_face import TransformersStage
from stepwell.cascade.stages.local import LocalStage
from stepwell.errors import CascadeError, PromptError, WeightsError
from stepwell.generate.verify import Verified
from stepwell.model.fingerprint import model_fingerprint

SAMPLED: dict[str, Any] = {"temperature": 0.8, "max_new_tokens": 16, "seed": 3}
EVERYTHING = Observe(top_logprobs=3, prompt_entropy=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("transformers") / "model")


@pytest.fixture(scope="module")
def ours(directory: Path) -> LocalStage:
    return LocalStage.load("ours", directory)


@pytest.fixture(scope="module")
def stage(directory: Path) -> TransformersStage:
    return TransformersStage.load("theirs", directory, device="cpu", max_rows=3)


@pytest.fixture(scope="module")
def twin(directory: Path, ours: LocalStage) -> TransformersStage:
    """A stage with the noise of our engine."""
    made = TransformersStage.load("theirs", directory, device="cpu")
    made.__dict__["fingerprint"] = model_fingerprint(ours.generator.model)
    return made


def faults(expected: Sequence[Reply], found: Sequence[Reply]) -> list[str]:
    """Where replies differ."""
    said = []
    for row, (one, other) in enumerate(zip(expected, found, strict=True)):
        old, new = one.completion, other.completion
        if (old.text, old.token_ids, old.finish_reason, old.usage) != (
            new.text, new.token_ids, new.finish_reason, new.usage,
        ):  # fmt: skip
            said.append(f"{row}: {new} for {old}")
        elif new.logprobs != pytest.approx(old.logprobs, abs=1e-4):
            said.append(f"{row}: log-probabilities")
        elif [[token for token, _ in place] for place in one.top_logprobs] != [
            [token for token, _ in place] for place in other.top_logprobs
        ]:
            said.append(f"{row}: likeliest tokens")
        elif other.prompt_entropy != pytest.approx(one.prompt_entropy, abs=1e-4, nan_ok=True):
            said.append(f"{row}: entropy {other.prompt_entropy} for {one.prompt_entropy}")
    return said


def test_greedy_answers_are_those_of_our_engine(stage: TransformersStage, ours: LocalStage) -> None:
    expected = ours.generate(PROMPTS, observe=EVERYTHING, **GREEDY)
    assert {reply.completion.finish_reason for reply in expected} == {"stop", "length"}
    assert faults(expected, stage.generate(PROMPTS, observe=EVERYTHING, **GREEDY)) == []
    plain = stage.generate(PROMPTS, **GREEDY)
    assert all(math.isnan(reply.prompt_entropy) for reply in plain)
    assert {reply.top_logprobs for reply in plain} == {()}


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"seed": 7},
    {"top_k": 3, "top_p": 0.7},
    {"min_p": 0.2},
    {"repetition_penalty": 1.9},
    {"presence_penalty": 1.0, "frequency_penalty": 1.0},
    {"no_repeat_ngram_size": 2},
    {"temperature": 0.0, "min_new_tokens": 9},
    {"temperature": 0.0, "ignore_eos": True},
    {"stop": ("e", " 2")},
    {"forced_tokens": (70, 71)},
    {"temperature": 0.0, "repetition_penalty": 1.9},
]


@pytest.mark.parametrize("changed", PARAMETERS, ids=lambda changed: "-".join(changed) or "plain")
def test_sampled_answers_are_those_of_our_engine_where_the_noise_is(
    changed: dict[str, Any], twin: TransformersStage, ours: LocalStage
) -> None:
    asked = {**SAMPLED, **changed}
    expected = ours.generate(PROMPTS, **asked)
    assert faults(expected, twin.generate(PROMPTS, **asked)) == []
    whole = Draft(expected[0].completion.text, expected[0].completion.token_ids, ours.vocabulary)
    assert faults(expected[:1], twin.verify(PROMPTS[:1], [whole], **asked)) == []


def test_a_stage_has_noise_of_its_own(stage: TransformersStage, ours: LocalStage) -> None:
    assert stage.fingerprint != ours.fingerprint
    own = stage.generate(PROMPTS, **SAMPLED)
    assert faults(own, stage.generate(PROMPTS, **SAMPLED)) == []
    assert faults(own, ours.generate(PROMPTS, **SAMPLED)) != []


def test_an_answer_does_not_depend_on_its_company(
    stage: TransformersStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**SAMPLED, "observe": EVERYTHING}
    together = stage.generate(PROMPTS, **asked)
    for count in (1, 2, 8):
        monkeypatch.setattr(stage, "max_rows", count)
        assert faults(together, stage.generate(PROMPTS, **asked)) == []


def spoiled(reply: Reply, source: random.Random, vocabulary: str) -> Draft:
    """The reply as a draft, cut, lengthened, with a token changed, or as it is."""
    ids = list(reply.completion.token_ids)
    at = source.randrange(len(ids))
    ways = [ids, ids[:at], [*ids[:at], 70, *ids[at + 1 :]], [*ids, 65, 66], []]
    return Draft("", tuple(source.choice(ways)), vocabulary)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_verifying_a_draft_gives_the_answer_without_one(
    temperature: float, stage: TransformersStage
) -> None:
    source = random.Random(0)
    for changed in ({}, {"stop": ("e", " 2")}, {"max_new_tokens": 4}, {"repetition_penalty": 1.5}):
        asked = {**SAMPLED, **changed, "temperature": temperature, "observe": EVERYTHING}
        plain = stage.generate(PROMPTS, **asked)
        drafts = [spoiled(reply, source, stage.vocabulary) for reply in plain]
        found = stage.verify(PROMPTS, drafts, **asked)
        assert faults(plain, found) == []
        assert {reply.mode for reply in found} == {"verified"}
        assert sum(reply.completion.usage.accepted_tokens for reply in found) > 5


def test_believing_every_drafted_token_would_be_found_out(
    stage: TransformersStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stage.generate(PROMPTS, **SAMPLED)
    source = random.Random(0)
    drafts = [spoiled(reply, source, stage.vocabulary) for reply in plain]

    def believe(logits_NV: Any, drafts: Any, *rest: Any) -> Verified:
        counts = torch.tensor([len(draft) for draft in drafts])
        last = (counts + 1).cumsum(0) - 1
        return Verified(counts, logits_NV[last].argmax(-1))

    monkeypatch.setattr(rows, "verify_by_equality", believe)
    assert faults(plain, stage.verify(PROMPTS, drafts, **SAMPLED)) != []


def test_what_became_of_a_draft_is_counted(stage: TransformersStage) -> None:
    [plain] = stage.generate(PROMPTS[1:2], **GREEDY)
    ids = plain.completion.token_ids
    drafts = [ids, (*ids[:5], 70, 71, 72), (), (70, *ids[1:])]
    given = [Draft("", each, stage.vocabulary) for each in drafts]
    found = stage.verify(PROMPTS[1:2] * len(given), given, **GREEDY)
    usages = [reply.completion.usage for reply in found]
    assert [(each.accepted_tokens, each.rejected_tokens) for each in usages] == [
        (len(ids), 0), (5, 3), (0, 0), (0, len(ids)),
    ]  # fmt: skip
    foreign = stage.verify(PROMPTS[1:2], [Draft(plain.completion.text, (1, 2), "other")], **GREEDY)
    assert faults([plain], foreign) == []


def test_a_score_is_that_of_our_engine(stage: TransformersStage, ours: LocalStage) -> None:
    answers = [" dog that ran", "~", " 4 5", "", "x y", " had", "8", ";"]
    pairs = zip(stage.score(PROMPTS, answers), ours.score(PROMPTS, answers), strict=True)
    for found, expected in pairs:
        assert found == pytest.approx(expected, abs=1e-4)
    assert stage.score([], []) == []


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},  # no positions
    "gpt_neox": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 40, "max_position_embeddings": 64,
    },
    "mistral": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 40, "sliding_window": 4,
        "max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_answer_in_a_batch_as_alone(family: str) -> None:
    tokenizer = word_tokenizer()
    config = AutoConfig.for_model(family, vocab_size=tokenizer.vocab_size, **FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape))
    stage = TransformersStage("x", model, tokenizer)
    replies = stage.generate(PROMPTS, **SAMPLED)
    source = random.Random(0)
    drafts = [spoiled(reply, source, stage.vocabulary) for reply in replies]
    assert faults(replies, stage.verify(PROMPTS, drafts, **SAMPLED)) == []
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert faults([reply], stage.generate([prompt], **SAMPLED)) == []
        [before] = stage.encode([prompt])
        ids = torch.tensor([[*before, *reply.completion.token_ids]])
        with torch.inference_mode():
            logprob_TV = model(input_ids=ids).logits[0].double().log_softmax(-1)
        expected = logprob_TV[len(before) - 1 : -1].gather(1, ids[0, len(before) :, None])[:, 0]
        assert reply.completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


class Noted:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.last = (0, 0)

    def update(self, finished: int, tokens: int) -> None:
        assert finished >= self.last[0]
        assert tokens >= self.last[1]
        self.last = finished, tokens


def test_progress_counts_answers_and_tokens(stage: TransformersStage) -> None:
    noted = Noted()
    replies = stage.generate(PROMPTS, progress=noted, **GREEDY)
    tokens = sum(len(reply.completion.token_ids) for reply in replies)
    assert noted.last == (len(PROMPTS), tokens)


def test_what_is_late_ends_where_it_is(
    stage: TransformersStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stage.generate(PROMPTS, **GREEDY)
    for found in (
        stage.generate(PROMPTS, deadline_s=0.0, **GREEDY),
        stage.verify(PROMPTS, [Draft("x", (), "")] * len(PROMPTS), deadline_s=0.0, **GREEDY),
    ):
        assert {reply.completion.finish_reason for reply in found} == {"timeout"}
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    found = stage.generate(PROMPTS[:3], deadline_s=6.5, **GREEDY)
    monkeypatch.undo()
    for reply, full in zip(found, whole[:3], strict=True):
        count = len(reply.completion.token_ids)
        assert reply.completion.token_ids == full.completion.token_ids[:count]
        assert count == 6 or reply.completion.finish_reason == "stop"


def test_the_context_bounds_prompt_and_answer(stage: TransformersStage, ours: LocalStage) -> None:
    asked = {"temperature": 0.0, "max_new_tokens": 10 * CONTEXT, "ignore_eos": True}
    long = ["cat " * 10, "cat " * 25]
    assert faults(ours.generate(long, **asked), stage.generate(long, **asked)) == []
    with pytest.raises(PromptError, match=r"Prompt 1 has .* context holds 128"):
        stage.generate(["a", "cat " * CONTEXT], **GREEDY)


def test_logits_that_are_no_numbers_end_an_answer_with_an_error(directory: Path) -> None:
    broken = TransformersStage.load("broken", directory, device="cpu")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(math.nan)
    for found in (
        broken.generate(PROMPTS[:2], **SAMPLED),
        broken.verify(PROMPTS[:2], [Draft("x", (), "")] * 2, **SAMPLED),
    ):
        assert [reply.completion.finish_reason for reply in found] == ["error", "error"]
        assert "No token can be chosen" in found[0].completion.error


def test_a_stage_is_known_by_its_weights(
    stage: TransformersStage, directory: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in directory.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert TransformersStage.load("b", moved, device="cpu").fingerprint == stage.fingerprint
    other = TransformersStage.load("c", save_tiny(tmp_path / "other", seed=1), device="cpu")
    assert other.fingerprint != stage.fingerprint
    assert other.vocabulary == stage.vocabulary


def test_flops_are_two_for_each_weight_that_multiplies(stage: TransformersStage) -> None:
    [reply] = stage.generate(PROMPTS[:1], **GREEDY)
    looked_up = stage.model.get_input_embeddings().weight.numel()
    weights = sum(parameter.numel() for parameter in stage.model.parameters()) - looked_up
    assert stage.flops(reply.completion) == 2 * weights * (reply.completion.usage.total_tokens - 1)


def test_what_cannot_be_loaded_is_an_error_that_says_so(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no directory"):
        TransformersStage.load("x", tmp_path / "nothing")
    for file in directory.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CascadeError, match="Stage 'x': transformers cannot load"):
        TransformersStage.load("x", tmp_path)
