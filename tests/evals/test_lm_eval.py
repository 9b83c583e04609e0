"""Scores by our model are those that lm-evaluation-harness computes with transformers."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stepwell.errors import ConfigError, DataError, TemplateError
from stepwell.evals.likelihood import encode_pair
from stepwell.evals.lm_eval import lm_eval_model, results_of, run_lm_eval
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.interventions import ZeroHeads
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.text.tokenizer import Tokenizer

pytest.importorskip("lm_eval")

STORY = "The cat sat on the mat and looked at the moon. A dog ran up the hill to the old well. "
WORDS = STORY.replace(".", "").split()
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ROLES = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def make_model(directory: Path, *, begins: bool) -> Path:
    """A directory that both load: random weights, a BPE, BOS put before texts where it `begins`."""
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer.train_bpe([STORY], 300, roles=ROLES)
    if begins:
        bos = ("<s>", made.id_of("<s>"))
        made.core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    tokenizer = Tokenizer(made.core, ROLES, {"chat_template": TEMPLATE})
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=96,
        width=32,
        num_layers=2,
        num_heads=4,
        eos_id=tokenizer.id_of("</s>"),
    )
    model = Transformer(config)
    model.initialize(seed=3)
    with torch.no_grad():  # peaked, so that choices differ by much more than rounding
        model.embed.weight.mul_(3)
    save_model(model, directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no-bos"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), begins=request.param)


@pytest.fixture(scope="module")
def generator(directory: Path) -> TextGenerator:
    return TextGenerator.load(directory, device="cpu")


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks of lm-eval's and their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": " ".join(WORDS[n : n + 3 + n % 4]),
            "choices": [WORDS[n], f"{WORDS[n + 1]} {WORDS[n + 2]}", "old hill", "up"],
            "label": n % 4,
            "answer": WORDS[n + 4],
        }
        for n in range(12)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 1,
        "doc_to_text": "Say {{question}}:",
    }
    choice = {
        **shared,
        "task": "well_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    written = {
        **shared,
        "task": "well_written",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["the", "\n\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    }
    rolling = {
        "task": "well_rolling",
        **{key: shared[key] for key in ("dataset_path", "dataset_kwargs", "test_split")},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{(question + ' ') * 12}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    for task in (choice, written, rolling):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


TASKS = ("well_choice", "well_written", "well_rolling")


def run(model: Any, folder: Path, tasks: Sequence[str] = TASKS, **options: Any) -> dict[str, Any]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return run_lm_eval(model, tasks, include_path=folder, **options)


@pytest.fixture(scope="module")
def ours(generator: TextGenerator, task_files: Path) -> dict[str, Any]:
    """What our model scores at all tasks."""
    return run(lm_eval_model(generator, batch_size=3), task_files)


def answers(found: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in found["samples"][task]]


def test_scores_and_samples_equal_those_of_the_backend_for_transformers(
    ours: dict[str, Any], theirs: Any, task_files: Path
) -> None:
    expected = run(theirs, task_files)
    for task in TASKS:
        measured = {k: v for k, v in expected["results"][task].items() if isinstance(v, float)}
        assert measured
        assert {k: ours["results"][task][k] for k in measured} == pytest.approx(measured, abs=1e-5)
    assert answers(ours, "well_written") == answers(expected, "well_written")
    for mine, other in zip(
        answers(ours, "well_choice"), answers(expected, "well_choice"), strict=True
    ):
        assert [score for [(score, _)] in mine] == pytest.approx(
            [score for [(score, _)] in other], abs=1e-4
        )
        assert [greedy for [(_, greedy)] in mine] == [greedy for [(_, greedy)] in other]


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


PAIRS = [
    ("The cat", " sat on the mat"),
    ("The cat ", "sat"),
    ("", "The cat"),
    ("<s>The cat", " sat"),
    ("A dog\n", "ran"),
    (STORY * 5, " The cat sat"),  # longer than the model's context
]


def test_borders_beginnings_and_long_contexts_are_those_of_the_backend(
    generator: TextGenerator, theirs: Any
) -> None:
    asked = instances("loglikelihood", *PAIRS)
    found = lm_eval_model(generator).loglikelihood(asked, disable_tqdm=True)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_our_own_pairs_of_texts_are_the_same_tokens(generator: TextGenerator) -> None:
    model = lm_eval_model(generator)
    for context, continuation in PAIRS:
        if context:
            expected = model._encode_pair(context, continuation)
            assert [
                list(ids) for ids in encode_pair(generator.tokenizer, context, continuation)
            ] == (list(expected))


def test_long_texts_are_read_in_the_windows_of_the_backend(
    generator: TextGenerator, theirs: Any
) -> None:
    asked = instances("loglikelihood_rolling", (STORY * 6,), ("The cat",))
    ours = lm_eval_model(generator).loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-3)


def test_answers_to_long_prompts_and_with_several_stops_are_those_of_the_backend(
    generator: TextGenerator, theirs: Any
) -> None:
    settings = {"until": ["the", "\n\n"], "max_gen_toks": 10}
    asked = instances(
        "generate_until",
        (STORY * 5, settings),
        ("A dog", settings),
        ("<s>A dog", {**settings, "until": []}),
        ("A dog", {"until": "ran", "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}),
    )
    ours = lm_eval_model(generator).generate_until(asked, disable_tqdm=True)
    for number, request in enumerate(asked):  # one by one: their batches pad on the left
        assert [ours[number]] == theirs.generate_until([request], disable_tqdm=True)
    assert any(ours)


def test_an_intervention_gives_other_scores(
    generator: TextGenerator, ours: dict[str, Any], task_files: Path
) -> None:
    changed = lm_eval_model(generator, interventions=[ZeroHeads({0: [0, 1], 1: [2]})])
    found = run(changed, task_files)
    for task in TASKS:
        assert answers(found, task) != answers(ours, task), task


def test_the_chat_template_writes_what_transformers_writes(
    generator: TextGenerator, theirs: Any
) -> None:
    ours = lm_eval_model(generator)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the well?"},
    ]
    for speaks in (True, False):
        begun = talk if speaks else [*talk, {"role": "assistant", "content": "Up the"}]
        expected = theirs.apply_chat_template(begun, add_generation_prompt=speaks)
        assert ours.apply_chat_template(begun, add_generation_prompt=speaks) == expected
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.chat_template(False) is None
    assert ours.tokenizer_name


def test_scores_in_a_conversation_are_those_of_the_backend(
    generator: TextGenerator, theirs: Any, task_files: Path
) -> None:
    found, expected = (
        run(model, task_files, TASKS[:1], apply_chat_template=True, limit=3)
        for model in (lm_eval_model(generator), theirs)
    )
    [first, *_] = found["samples"]["well_choice"]
    assert "[assistant]" in first["arguments"][0][0]
    for mine, other in zip(
        *(answers(each, "well_choice") for each in (found, expected)), strict=True
    ):
        assert [s for [(s, _)] in mine] == pytest.approx([s for [(s, _)] in other], abs=1e-4)


def test_a_model_without_a_chat_template_says_so(generator: TextGenerator) -> None:
    bare = Tokenizer(generator.tokenizer.core, ROLES)
    model = lm_eval_model(TextGenerator(generator.model, bare))
    with pytest.raises(TemplateError, match="no chat template"):
        model.apply_chat_template([{"role": "user", "content": "Where?"}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_gen_toks": 96}, "asks for 96 tokens, the model's context holds 96"),
        ({"num_beams": 4}, "num_beams is 4"),
        ({"temprature": 0.5}, "temprature"),
    ],
)
def test_what_cannot_be_generated_is_an_error(
    generator: TextGenerator, settings: dict[str, Any], said: str
) -> None:
    asked = instances("generate_until", ("A dog", {"until": [], "max_gen_toks": 4, **settings}))
    with pytest.raises(ConfigError, match=said):
        lm_eval_model(generator).generate_until(asked, disable_tqdm=True)


def test_sampling_is_as_the_task_says() -> None:
    from stepwell.evals.harness import sampling_of

    sampled = sampling_of(
        {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": ["a"] * 20}
    )
    assert (sampled.temperature, sampled.top_p, sampled.max_new_tokens) == (0.5, 0.9, 256)
    assert sampled.stop == ("a",) * 16
    assert sampling_of({"do_sample": True}).greedy
    assert sampling_of({"do_sample": False, "temperature": 0.5}).greedy
    assert sampling_of({"temperature": 0.5}).temperature == 0.5


def test_a_sampled_request_that_comes_again_gets_another_answer(generator: TextGenerator) -> None:
    sampled = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    for settings, different in ((sampled, 4), ({"until": [], "max_gen_toks": 12}, 1)):
        asked = instances("generate_until", *[("A dog", settings)] * 4)
        texts = lm_eval_model(generator).generate_until(asked, disable_tqdm=True)
        assert len(set(texts)) == different
        assert lm_eval_model(generator).generate_until(asked, disable_tqdm=True) == texts


def test_a_task_that_there_is_not_is_refused(
    generator: TextGenerator, task_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    few = partial(tasks.TaskManager, include_defaults=False)  # listing all takes long
    monkeypatch.setattr(tasks, "TaskManager", few)
    with pytest.raises(ConfigError, match="no task 'well_chioce'"):
        run_lm_eval(lm_eval_model(generator), ["well_chioce"], include_path=task_files)


def test_documents_that_are_not_there_are_an_error(
    generator: TextGenerator, task_files: Path, tmp_path: Path
) -> None:
    task = yaml.safe_load((task_files / "well_written.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "well_gone.yaml").write_text(yaml.safe_dump({**task, "task": "well_gone"}))
    with pytest.raises(DataError, match=r"documents of well_gone cannot be read: .*gone\.jsonl"):
        run_lm_eval(lm_eval_model(generator), ["well_gone"], include_path=tmp_path)


def test_results_become_ours_with_intervals(ours: dict[str, Any]) -> None:
    results = {result.task: result for result in results_of(ours)}
    assert set(results) == set(TASKS)
    raw, found = ours["results"]["well_choice"], results["well_choice"].metrics
    assert results["well_choice"].num == 12
    assert set(found) == {"acc", "acc_norm"}
    assert found["acc"].estimate == pytest.approx(raw["acc,none"])
    half = 1.96 * raw["acc_stderr,none"]
    assert found["acc"].high - raw["acc,none"] == pytest.approx(half, abs=0.08)
    assert 0 <= found["acc"].low < raw["acc,none"]
    no_mean = results["well_rolling"].metrics["bits_per_byte"]
    assert no_mean.estimate == ours["results"]["well_rolling"]["bits_per_byte,none"]
    assert math.isnan(no_mean.low)


def test_without_lm_eval_the_error_says_how_to_get_it(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as raised:
        lm_eval_model(generator)
    assert 'pip install "stepwell[eval]"' in raised.value.fix


def test_nothing_but_its_use_imports_lm_eval() -> None:
    code = """
import sys, stepwell.evals.lm_eval, stepwell.evals.evaluate
assert not [name for name in sys.modules if name.split(".")[0] == "lm_eval"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
