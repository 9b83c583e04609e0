"""A model directory as a stage: one reply a prompt, from the start or from a draft."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.stage import Draft, Observe
from stepwell.cascade.stages.load import close_stages, load_stages
from stepwell.cascade.stages.local import LocalStage
from stepwell.errors import CascadeError
from stepwell.generate.text import TextGenerator
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.presets import presets
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.tasks.facts import Facts
from stepwell.train.trainer import fitted

TASK = Facts(facts=8)
PROMPTS = [example.prompt for example in TASK.all()]


def tiny(seed: int) -> Transformer:
    shape = presets["tiny"].resized(width=16, num_layers=1, num_heads=1)
    model = Transformer(fitted(shape, TASK))
    model.initialize(seed)
    return model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stages")
    for seed in (0, 1):
        save_model(tiny(seed), root / f"model-{seed}")
        TASK.tokenizer.save(root / f"model-{seed}")
    return root


def test_a_stage_gives_one_answer_a_prompt_with_all_log_probabilities(directory: Path) -> None:
    stage = LocalStage.load("small", directory / "model-0", max_rows=3)
    replies = stage.generate(PROMPTS, temperature=0.0, max_new_tokens=3)
    answers = [reply.completion for reply in replies]
    generator = TextGenerator.load(directory / "model-0")
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.text == generator.generate(prompt, temperature=0.0, max_new_tokens=3).text
        ids = torch.tensor([[*stage.generator.tokenizer.encode(prompt), *answer.token_ids]])
        logits = generator.model(ids)[0, -4:-1].double().log_softmax(-1)
        expected = logits.gather(-1, ids[0, -3:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(answer.logprobs, dtype=torch.float64), expected, rtol=0, atol=1e-5
        )
    assert {reply.mode for reply in replies} == {"anew"}


def test_what_is_asked_for_is_told_and_moves_nothing(directory: Path) -> None:
    stage = LocalStage.load("small", directory / "model-0", strict=True)
    asked = {"temperature": 0.8, "seed": 3, "max_new_tokens": 3}
    plain = stage.generate(PROMPTS, **asked)
    told = stage.generate(PROMPTS, observe=Observe(2, prompt_entropy=True), **asked)
    assert [each.completion.text for each in told] == [each.completion.text for each in plain]
    assert all(math.isnan(each.prompt_entropy) and not each.top_logprobs for each in plain)
    for prompt, reply in zip(PROMPTS, told, strict=True):
        assert [len(place) for place in reply.top_logprobs] == [2, 2, 2]
        assert all(best[1] >= second[1] for best, second in reply.top_logprobs)
        ids = torch.tensor([stage.generator.tokenizer.encode(prompt)])
        logprobs = stage.generator.model(ids)[0].double().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean().item()
        assert reply.prompt_entropy == pytest.approx(entropy, abs=1e-5)
        assert reply.completion.recording is None


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verifying_any_draft_gives_what_generating_gives(
    directory: Path, temperature: float
) -> None:
    first, second = (
        LocalStage.load("x", directory / f"model-{seed}", strict=True) for seed in (0, 1)
    )
    asked = {"temperature": temperature, "seed": 5, "max_new_tokens": 3}
    plain = [each.completion for each in second.generate(PROMPTS, **asked)]
    theirs = [each.completion for each in first.generate(PROMPTS, **asked)]
    drafts = [Draft(each.text, each.token_ids, first.vocabulary) for each in theirs]
    own = [Draft(each.text, each.token_ids, second.vocabulary) for each in plain]
    foreign = [Draft(each.text, (1, 2, 3), "another vocabulary") for each in plain]
    for offered, accepted in ((drafts, None), (own, 2), (foreign, 2)):
        replies = second.verify(PROMPTS, offered, **asked)
        assert [each.completion for each in replies] == plain
        assert {each.mode for each in replies} == {"verified"}
        if accepted is not None:
            counts = {each.completion.usage.accepted_tokens for each in replies}
            assert counts == {accepted}, "the last of three tokens is never drafted"


def test_answers_are_scored_as_they_were_generated(directory: Path) -> None:
    stage = LocalStage.load("small", directory / "model-0")
    replies = stage.generate(PROMPTS, temperature=0.0, max_new_tokens=3)
    texts = [each.completion.text for each in replies]
    for reply, scored in zip(replies, stage.score(PROMPTS, texts), strict=True):
        assert scored == pytest.approx(reply.completion.logprobs, abs=1e-5)
    [other] = stage.score(PROMPTS[:1], ["a"])
    assert len(other) == 1
    assert other[0] < replies[0].completion.logprobs[0]


def test_what_it_has_read_can_be_forgotten(directory: Path) -> None:
    stage = LocalStage.load("small", directory / "model-0")
    pin = stage.pin(PROMPTS[0], stage.generate(PROMPTS[:1], max_new_tokens=3)[0].completion)
    stage.forget()
    stage.unpin(pin)
    assert stage.generator.engine._cache.blocks.num_held == 0


def test_stages_are_told_apart_by_their_weights(directory: Path) -> None:
    first, second = (LocalStage.load("x", directory / f"model-{seed}") for seed in (0, 1))
    assert first.fingerprint == model_fingerprint(tiny(0)) != second.fingerprint


def test_flops_are_those_of_the_tokens_that_were_fed(directory: Path) -> None:
    stage = LocalStage.load("small", directory / "model-0")
    short, long = (
        stage.generate(PROMPTS[:1], temperature=0.0, max_new_tokens=count)[0].completion
        for count in (1, 3)
    )
    config = stage.generator.model.config
    assert stage.flops(short) == config.flops(5, context=2)
    assert stage.flops(long) == config.flops(7, context=3)


def test_a_ladders_stages_are_loaded_from_beside_its_file(directory: Path) -> None:
    config = LadderConfig.parse(
        {
            "stages": [
                {"name": "small", "model": "../model-0"},
                {"name": "large", "model": str(directory / "model-1")},
            ],
            "serving": {"max_rows": 5},
        }
    )
    (directory / "demo").mkdir(exist_ok=True)
    stages = load_stages(config, directory / "demo")
    assert [stage.name for stage in stages] == ["small", "large"]
    assert [stage.generator.engine.max_rows for stage in stages] == [5, 5]
    close_stages(stages)
    with pytest.raises(CascadeError, match=r"Stage 'small' has no model in .*model-0"):
        load_stages(config, directory)
