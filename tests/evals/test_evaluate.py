"""Scores of local tasks: what is right counts, by likelihood or by what the model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stepwell.errors import ConfigError, LogitsError, PromptError
from stepwell.evals.evaluate import Sample, evaluate, intervals_of
from stepwell.evals.grades import grade_of
from stepwell.evals.local_task import Generate, OpenQuestion, read_local_task
from stepwell.evals.math_answer import MathChecker
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.tasks import Facts
from stepwell.text.tokenizer import Tokenizer

FACTS = Facts(facts=6)


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    """A small random model over the letters of facts."""
    config = ModelConfig(vocab_size=27, context_length=24, width=16, num_layers=1, num_heads=2)
    model = Transformer(config)
    model.initialize(seed=2)
    return TextGenerator(model, FACTS.tokenizer)


def file_of(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def choices_of(*documents: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "multiple_choice",
        "prompt": "{key}>",
        "delimiter": "",
        "documents": list(documents),
    }


def logprob(generator: TextGenerator, prompt: str, answer: str) -> float:
    """The sum over tokens, by a forward over the whole."""
    ids = generator.tokenizer.encode(prompt + answer)
    with torch.no_grad():
        logprobs = generator.model(torch.tensor([ids]))[0].double().log_softmax(-1)
    first = len(generator.tokenizer.encode(prompt))
    return float(sum(logprobs[place - 1, ids[place]] for place in range(first, len(ids))))


def test_the_likeliest_choice_is_the_answer(generator: TextGenerator, tmp_path: Path) -> None:
    choices = ["abc", "x", "qqqqqq", "to"]
    documents = [
        {"key": key, "choices": choices, "answer": right}
        for key in ("abcd", "zyxw", "mmmm")
        for right in range(4)
    ]
    [result] = evaluate(generator, [file_of(tmp_path, choices_of(*documents))])
    for sample, document in zip(result.samples, documents, strict=True):
        scores = [logprob(generator, document["key"] + ">", choice) for choice in choices]
        assert sample.logprobs == pytest.approx(scores, abs=1e-4)
        by_length = np.array(scores) / [len(choice) for choice in choices]
        assert sample.scores == {
            "acc": float(np.argmax(scores) == document["answer"]),
            "acc_norm": float(np.argmax(by_length) == document["answer"]),
        }
    assert result.num == 12
    assert result.metrics["acc"].estimate == 0.25
    assert result.metrics["acc_norm"].estimate == 0.25
    assert any(sample.scores["acc"] != sample.scores["acc_norm"] for sample in result.samples)


def test_what_is_written_is_that_of_generate(generator: TextGenerator, tmp_path: Path) -> None:
    keys = ["abcd", "efgh", "ijkl", "mnop"]
    said = [generator.generate(f"{key}>", max_new_tokens=4, temperature=0).text for key in keys]
    documents = [{"key": key, "value": text} for key, text in zip(keys, said, strict=True)]
    documents[1]["value"] = "wrong"
    values = {"kind": "generate", "prompt": "{key}>", "target": "{value}", "max_new_tokens": 4}
    [result] = evaluate(generator, [file_of(tmp_path, {**values, "documents": documents})])
    assert [sample.answer for sample in result.samples] == said
    assert [sample.scores["exact_match"] for sample in result.samples] == [1, 0, 1, 1]
    assert result.metrics["exact_match"].estimate == 0.75


def test_a_task_of_ours_is_scored_by_its_own_rule(generator: TextGenerator, tmp_path: Path) -> None:
    values = {"kind": "task", "task": FACTS.plain(), "num_documents": 8}
    path = file_of(tmp_path, values)
    [result] = evaluate(generator, [path])
    expected = []
    for number in range(8):
        example = FACTS.example_in("test", number)
        answer = generator.generate(example.prompt, max_new_tokens=3, temperature=0).text
        expected.append(float(FACTS.grade(example, answer)))
    assert [sample.scores["accuracy"] for sample in result.samples] == expected
    [first] = evaluate(generator, [path], limit=2)
    assert first.samples == result.samples[:2]


def test_interventions_reach_likelihoods_and_answers(
    generator: TextGenerator, tmp_path: Path
) -> None:
    choice = file_of(tmp_path, choices_of({"key": "abcd", "choices": ["abc", "x"], "answer": 0}))
    written = tmp_path / "written.yaml"
    values = {"kind": "generate", "prompt": "{k}>", "target": "a", "max_new_tokens": 8}
    written.write_text(yaml.safe_dump({**values, "documents": [{"k": k} for k in "abcdef"]}))
    changed = [ZeroHeads({0: [0, 1]})]
    plain = evaluate(generator, [choice, written])
    zeroed = evaluate(generator, [choice, written], interventions=changed)
    assert plain[0].samples[0].logprobs != zeroed[0].samples[0].logprobs
    answers = [[sample.answer for sample in result[1].samples] for result in (plain, zeroed)]
    assert answers[0] != answers[1]
    asked = generator.generate("a>", max_new_tokens=8, temperature=0, interventions=changed)
    assert answers[1][0] == asked.text


def test_a_second_run_with_a_cache_makes_no_answer_again(
    generator: TextGenerator, tmp_path: Path
) -> None:
    path = file_of(tmp_path, {"kind": "task", "task": FACTS.plain(), "num_documents": 8})
    runs = []
    for _ in range(2):
        with ResponseCache(tmp_path / "kept.sqlite") as cache:
            [result] = evaluate(generator, [path], cache=cache)
            runs.append((result.samples, cache.statistics.hits, cache.statistics.misses))
    assert runs[0][0] == runs[1][0]
    assert runs[1][1] == 8
    assert runs[1][2] == 0


def test_the_model_is_asked_nothing_where_a_file_is_wrong(
    generator: TextGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "generate_batch", lambda *_, **__: pytest.fail("it was asked"))
    path = file_of(tmp_path, {"kind": "task", "task": FACTS.plain()})
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate(generator, [path, tmp_path / "gone.yaml"])
    with pytest.raises(ConfigError, match="limit is 0"):
        evaluate(generator, [path], limit=0)
    with pytest.raises(ConfigError, match="a list of files"):
        evaluate(generator, str(path))


def test_a_prompt_that_cannot_be_read_names_its_task(
    generator: TextGenerator, tmp_path: Path
) -> None:
    values = choices_of({"key": "AB", "choices": ["a", "b"], "answer": 0})
    with pytest.raises(PromptError, match=r"Task mine: .* no token for 'A'"):
        evaluate(generator, [file_of(tmp_path, values)])


def test_a_model_that_fails_is_an_error_and_no_score(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=27, context_length=24, width=16, num_layers=1, num_heads=2)
    broken = Transformer(config)
    broken.initialize(seed=2)
    with torch.no_grad():
        broken.final_norm.weight.fill_(float("nan"))
    path = file_of(tmp_path, {"kind": "task", "task": FACTS.plain(), "num_documents": 2})
    with pytest.raises(LogitsError, match="Task mine"):
        evaluate(TextGenerator(broken, FACTS.tokenizer), [path])


# -- grades ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "answer", "target", "right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "Paris.", "Paris", False),
        ("contains", "It is Paris.", "Paris", True),
        ("contains", "It is paris.", "Paris", False),
        ("number", "3 or 1,200.0", "so #### 1200", True),
        ("number", "1/2", "0.5", True),
        ("number", "1200 or 3", "1200", False),
        ("number", "none", "3", False),
        ("number", "9" * 5000, "3", False),
        ("number", "3/0", "3", False),
        ("math", r"\boxed{\frac{1}{2}}", "0.5", True),
        ("math", r"\boxed{\frac{1}{3}}", "0.5", False),
    ],
)
def test_an_answer_is_right_by_the_match(match: str, answer: str, target: str, right: bool) -> None:
    values = {"kind": "generate", "prompt": "p", "target": "t", "match": match}
    with MathChecker() as checker:
        _, grade = grade_of(Generate(**values, documents=[{"x": 1}]), checker)
        assert grade(answer, OpenQuestion("p", target)).right == right


def test_a_target_without_a_number_is_the_files_fault() -> None:
    values = {"kind": "generate", "prompt": "p", "target": "t", "match": "number"}
    with MathChecker() as checker:
        _, grade = grade_of(Generate(**values, documents=[{"x": 1}]), checker)
        with pytest.raises(ConfigError, match="holds no number"):
            grade("3", OpenQuestion("p", "three"))


# -- intervals -------------------------------------------------------------------------------------


def samples_of(values: list[float]) -> list[Sample]:
    return [Sample("", "", "", {"acc": value, "acc_norm": 1 - value}) for value in values]


def test_an_interval_is_as_wide_as_that_of_the_binomial() -> None:
    values = [1.0] * 60 + [0.0] * 40
    found = intervals_of(samples_of(values))
    assert found["acc"].estimate == pytest.approx(0.6)
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert found["acc"].low == pytest.approx(0.6 - half, abs=0.02)
    assert found["acc"].high == pytest.approx(0.6 + half, abs=0.02)
    assert found["acc_norm"].low == pytest.approx(1 - found["acc"].high, abs=0.021)
    assert intervals_of(samples_of(values)) == found
    wider = intervals_of(samples_of(values[::10]))["acc"]
    assert wider.high - wider.low > 2 * (found["acc"].high - found["acc"].low)


def test_a_file_and_its_value_are_the_same_task(generator: TextGenerator, tmp_path: Path) -> None:
    path = file_of(tmp_path, {"kind": "task", "task": FACTS.plain(), "num_documents": 3})
    assert evaluate(generator, [read_local_task(path)]) == evaluate(generator, [path])


def test_a_longer_answer_than_the_prompt_leaves_room_for_names_the_task(tmp_path: Path) -> None:
    tokenizer = Tokenizer.character("ab")
    model = Transformer(
        ModelConfig(vocab_size=2, context_length=4, width=8, num_layers=1, num_heads=1)
    )
    model.initialize(seed=0)
    values = {"kind": "generate", "prompt": "{k}", "target": "a", "documents": [{"k": "abab"}]}
    with pytest.raises(PromptError, match="Task mine"):
        evaluate(TextGenerator(model, tokenizer), [file_of(tmp_path, values)])
