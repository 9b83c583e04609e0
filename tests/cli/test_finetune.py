"""Finetuning by command line: what is asked for by default, said before the start, and made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import stepwell as sw
from stepwell.text.chat import Chat
from stepwell.text.tokenizer import Tokenizer

MODEL = sw.ModelConfig(width=64, num_layers=1, num_heads=2, context_length=64)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model of bytes that knows of no conversations."""
    folder = tmp_path_factory.mktemp("base")
    text = folder / "numbers.txt"
    text.write_text("\n".join(f"{n} times 7 is {7 * n}." for n in range(200)))
    config = sw.TrainerConfig(
        model=MODEL, task=sw.tasks.Corpus(path=text, tokens="byte", window=32),
        steps=2, batch_size=4, samples=0, runs=folder, run_name="base", device="cpu",
    )  # fmt: skip
    return sw.Trainer(config).train().directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations in which every reply is thought about."""
    path = tmp_path / "sevens.jsonl"
    rows = [{"data": [f"{n}?", f"<think>7*{n}</think>{7 * n}"]} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def words(base: Path, data: Path, tmp_path: Path) -> list[object]:
    """A command line of two steps."""
    return [*asked(base, data, tmp_path), "--run-name", "tuned", "--steps", "2"]


def asked(base: Path, data: Path, folder: Path) -> list[object]:
    """A command line without a name and steps."""
    runs = folder / "runs"
    return ["finetune", base, "--data", data, "--runs", runs, "--evaluation-batches", "1"]


def test_a_model_answers_in_the_form_that_it_was_taught(run, base, data, tmp_path: Path) -> None:
    """It thinks, answers and ends; its base knew of none of these."""
    many = ("--steps", "200", "--lr", "1e-2", "--batch-size", "32", "--evaluate-every", "200")
    ended = run(*asked(base, data, tmp_path), *many)
    assert ended.code == 0, ended.err
    directory = tmp_path / "runs" / "base-sevens"
    assert f"stepwell chat {directory}" in ended.err
    talk = sw.Conversation(sw.TextGenerator.load(directory))
    question = sw.tasks.Chats(path=data).taught_examples()[0].prompt.removesuffix("<|reply|>")
    spoken = list(talk.say(question, temperature=0))
    assert any(each.thinking for each in spoken)
    number = int(question.removesuffix("?"))
    assert talk.messages[-1].think == f"7*{number}"
    assert talk.messages[-1].content == f"{7 * number}"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = Tokenizer.load(directory)
    ends = model.generation_config.eos_token_id
    assert Chat(tokenizer).end_ids <= {ends, *(ends if isinstance(ends, list) else ())}


def test_missing_tokens_are_added_and_the_others_keep_their_ids(run, words, base, tmp_path):
    assert run(*words).code == 0
    tuned, own = Tokenizer.load(tmp_path / "runs" / "tuned"), Tokenizer.load(base)
    known = own.core.get_vocab()
    assert known.items() <= tuned.core.get_vocab().items()
    added = tuned.core.get_vocab().keys() - known.keys()
    assert added == {"<|end|>", "<|reply|>", "<think>", "</think>"}
    assert sw.load_model(tmp_path / "runs" / "tuned").config.vocab_size == own.vocab_size + 4


def test_the_same_command_goes_on_and_a_tuned_model_is_a_base(run, words, data, tmp_path):
    assert run(*words).code == 0
    assert "trained to its end already" in run(*words).err
    tuned = tmp_path / "runs" / "tuned"
    again = run("finetune", tuned, "--data", data, "--runs", tmp_path / "runs", "--steps", 1)
    assert again.code == 0
    made = tmp_path / "runs" / "tuned-sevens"
    assert Tokenizer.load(made).core.get_vocab() == Tokenizer.load(tuned).core.get_vocab()


def test_a_dry_run_writes_no_run_and_takes_three_epochs_by_default(run, base, data, tmp_path):
    words = [*asked(base, data, tmp_path), "--batch-size", "8", "--dry-run", "--json"]
    plan = run(*words).json
    num_train = len(sw.tasks.Chats(path=data).taught_examples())
    assert plan["steps"] == -(-3 * num_train // 8)
    assert plan["directory"] == str(tmp_path / "runs" / "base-sevens")
    assert not (tmp_path / "runs").exists()


def test_lora_leaves_an_adapter_that_convert_merges(run, words, base, tmp_path):
    lora = ("--lora-rank", "4", "--lora-targets", "q_proj", "--lora-targets", "v_proj")
    plan = run(*words, *lora, "--dry-run", "--json").json
    width, head = 64, 64
    assert plan["trained_parameters"] == 2 * 4 * (width + head) + 4 * width  # and 4 new tokens
    assert plan["trained_parameters"] < plan["parameters"]
    ended = run(*words, *lora)
    assert ended.code == 0
    assert "parameters, by LoRA" in ended.err
    tuned, merged = tmp_path / "runs" / "tuned", tmp_path / "merged"
    assert "lr: 0.0002" in (tuned / "run.yaml").read_text()
    assert run("convert", base, merged, "--adapter", tuned / "adapter").code == 0
    one, other = sw.load_model(tuned).state_dict(), sw.load_model(merged).state_dict()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert Tokenizer.load(merged).fingerprint == Tokenizer.load(tuned).fingerprint


def test_a_run_out_of_patience_says_so_and_is_finished(run, words):
    stubborn = (*words[:-2], "--steps", "9", "--evaluate-every", "1", "--patience", "1")
    ended = run(*stubborn, "--lr", "1e-30", "--weight-decay", "0")
    assert ended.code == 0
    assert "Ended at step 2: 1 evaluations without a better loss" in ended.err
    again = run(*stubborn, "--lr", "1e-30", "--weight-decay", "0")
    assert "trained to its end already" in again.err
    assert "goes on from" not in again.err


def test_an_example_that_does_not_fit_is_an_error_before_the_start(run, words, data, tmp_path):
    with data.open("a") as file:
        file.write("\n" + json.dumps({"data": ["a long question " * 9, "<think>a</think>b"]}))
    ended = run(*words, "--quiet")
    assert ended.code == 1
    assert "'a long question" in ended.err
    assert "--max-tokens" in ended.err
    assert not (tmp_path / "runs").exists()
    assert run(*words, "--quiet", "--max-tokens", 64).code == 0


def test_a_base_of_another_kind_is_an_error_that_says_so(run, data, tmp_path):
    ended = run("finetune", tmp_path / "nothing" / "here", "--data", data)
    assert ended.code == 1
    assert "There is no directory" in ended.err
    assert run("finetune", tmp_path).code == 2  # --data is missing
