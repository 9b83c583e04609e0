"""A model directory as a stage: one answer a prompt, with the log-probability of every token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.stage import LocalStage, load_stages
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
    answers = stage.answer(PROMPTS, temperature=0.0, max_new_tokens=3)
    generator = TextGenerator.load(directory / "model-0")
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.text == generator.generate(prompt, temperature=0.0, max_new_tokens=3).text
        ids = torch.tensor([[*stage.generator.tokenizer.encode(prompt), *answer.token_ids]])
        logits = generator.model(ids)[0, -4:-1].double().log_softmax(-1)
        expected = logits.gather(-1, ids[0, -3:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(answer.logprobs, dtype=torch.float64), expected, rtol=0, atol=1e-5
        )
    [more] = stage.answer(PROMPTS[:1], temperature=0.0, max_new_tokens=3, logprobs=2, n=1)
    assert more.token_ids == answers[0].token_ids
    assert more.logprobs == pytest.approx(answers[0].logprobs, abs=1e-5)


def test_stages_are_told_apart_by_their_weights(directory: Path) -> None:
    first, second = (LocalStage.load("x", directory / f"model-{seed}") for seed in (0, 1))
    assert first.fingerprint == model_fingerprint(tiny(0)) != second.fingerprint


def test_flops_are_those_of_the_tokens_that_were_fed(directory: Path) -> None:
    stage = LocalStage.load("small", directory / "model-0")
    short, long = (
        stage.answer(PROMPTS[:1], temperature=0.0, max_new_tokens=count)[0] for count in (1, 3)
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
    with pytest.raises(CascadeError, match=r"Stage 'small' has no model in .*model-0"):
        load_stages(config, directory)
