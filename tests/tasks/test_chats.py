"""Conversations from a user's file: what is learnt of them, and where they belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.chats import CHATML, chat_tokenizer

import stepwell as sw
from stepwell.errors import DataError
from stepwell.tasks import IGNORE, SPLITS, Chats, Encoded
from stepwell.text import Tokenizer

ASKED = {"role": "user", "content": "2+3?"}
THOUGHT = {"role": "assistant", "content": "5", "think": "2 3"}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def learnt(task: Chats, encoded: Encoded) -> str:
    """The text of what an example trains."""
    return task.tokenizer.decode(
        [label for label in encoded.labels if label != IGNORE], skip_special=False
    )


def test_labels_are_what_the_assistant_says(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, THOUGHT, ASKED, {"role": "assistant", "content": "still 5"}]}]
    task = Chats(path=write(tmp_path / "a.jsonl", rows))
    one, two = map(task.encode, task.examples)
    assert learnt(task, one) == "<think>2 3</think>5<|end|>"
    assert learnt(task, two) == "still 5<|end|>"
    assert "<think>" not in task.examples[1].text  # what was thought before is gone
    for encoded in (one, two):
        follow = zip(encoded.ids[1:], encoded.labels, strict=False)
        assert all(label in (token, IGNORE) for token, label in follow)


def test_turns_without_thinking_share_an_example(tmp_path: Path) -> None:
    task = Chats(path=write(tmp_path / "a.jsonl", [{"data": ["a", "b", "c", "d"]}]))
    (example,) = task.examples
    assert [target.text for target in example.targets] == ["b<|end|>", "d<|end|>"]
    assert learnt(task, task.encode(example)) == "b<|end|>d<|end|>"


def test_conversations_that_begin_alike_are_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"data": [f"{n}?", f"<think>{n}</think>{tail}", f"{tail}!", f"<think>b</think>{n}"]}
        for n in range(200)
        for tail in ("x", "y")
    ]
    task = Chats(path=write(tmp_path / "a.jsonl", rows))
    assert len(task.examples) == 800
    homes: dict[str, set[str]] = {split: set() for split in SPLITS}
    for number, example in enumerate(task.examples):
        homes[task.splits[task.row_of(number)]].add(example.text.split("?")[0])
    assert sum(map(len, homes.values())) == len(set().union(*homes.values())) == 200
    assert all(homes.values())
    by_prompt = {split: set() for split in SPLITS}
    for example in task.examples:  # negative control: what the rule of single examples would do
        by_prompt[example.split].add(example.text.split("?")[0])
    assert sum(map(len, by_prompt.values())) > 200


def test_longer_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"data": ["a" * n, "b"]} for n in range(1, 10)])
    task = Chats(path=path, max_tokens=8)  # the question, <|reply|>, b and <|end|>
    assert (len(task.examples), task.num_left_out, task.context_length) == (5, 4, 8)
    with pytest.raises(DataError, match="all 9 examples have more than max_tokens=3"):
        len(Chats(path=path, max_tokens=3).examples)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"data": ["a", "b"]}\n{"data": [', "a.jsonl, line 2: not valid JSON"),
        ('\n\n{"data": ["a"]}', "a.jsonl, line 3: .*1 entries"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "line 1: message 0: there is no role"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 1: the conversation has no"),
    ],
)
def test_a_malformed_line_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        len(Chats(path=path).examples)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    task = Chats(path=write(tmp_path / "a.jsonl", [{"data": ["a", "b"]}]))
    empty = next(split for split in SPLITS if split != task.splits[0])
    with pytest.raises(DataError, match=f"none of 1 examples belongs to the {empty} split"):
        task.example_in(empty, 0)


def test_a_model_s_own_tokenizer_and_template_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [ASKED, THOUGHT]}])
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        Tokenizer(chat_tokenizer().core, {"eos": "</s>"}, {"chat_template": CHATML}).save(
            tmp_path / place
        )
    task, moved = (Chats(path=path, tokenizer_from=tmp_path / place) for place in ("one", "two"))
    assert task.examples[0].text.endswith("<think>\n2 3\n</think>\n\n5<|im_end|>")
    assert task.fingerprint == moved.fingerprint != Chats(path=path).fingerprint


def test_an_answer_is_graded_without_what_was_thought(tmp_path: Path) -> None:
    task = Chats(path=write(tmp_path / "a.jsonl", [{"messages": [ASKED, THOUGHT]}]))
    example = task.examples[0]
    for said in ("5", "<think>2 3</think>5<|end|>", "<think>\nno</think>\n5"):
        assert task.grade(example, said)
    for said in ("", "<think>5", "<think>2 3</think>6", "2 3"):
        assert not task.grade(example, said)


def test_a_model_speaks_the_format_it_was_taught(chat_run: Path) -> None:
    gen = sw.TextGenerator.load(chat_run)
    task = Chats(path=chat_run.parents[1] / "chats.jsonl")
    right = 0
    for number, example in enumerate(task.examples):
        done = gen.generate(example.prompt, temperature=0.0)
        said = task.tokenizer.decode(done.token_ids, skip_special=False)
        assert done.finish_reason == "stop"
        in_format = task.chat.reply(said).think == f"{number} times 7"
        right += in_format and task.grade(example, said)
    assert right > 0.8 * len(task.examples)
