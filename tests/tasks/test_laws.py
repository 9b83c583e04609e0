"""Laws that every task keeps, checked on all that are built in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepwell.config import read_yaml, write_yaml
from stepwell.errors import ConfigError, DataError, UsageError
from stepwell.tasks import (
    IGNORE,
    SPLITS,
    TASKS,
    Batch,
    Encoded,
    Example,
    Task,
    task_from_plain,
)

TEXT = "".join(f"{i} wells have {i * i} steps, ça va.\n" for i in range(400))
CHATS = "".join(
    json.dumps({"data": [f"{i}²?", f"<think>{i} times</think>{i * i}", "why?", f"as {i}"]}) + "\n"
    for i in range(200)
)
LINES = "".join(json.dumps({"prompt": f"{i}²=", "answer": str(i * i)}) + "\n" for i in range(200))
ROWS = "".join(
    json.dumps({"text": f"{n} documents, ça va.\n" * (n % 5)}) + "\n" for n in range(400)
)
PROBLEMS = "".join(
    json.dumps(
        {"question": f"{i}²?", "answer": f"{i}*{i}=<<{i}*{i}={i * i}>>{i * i}\n#### {i * i}"}
    )
    + "\n"
    for i in range(200)
)
FILES = {
    "text.txt": TEXT,
    "lines.jsonl": LINES,
    "chats.jsonl": CHATS,
    "rows.jsonl": ROWS,
    "problems.jsonl": PROBLEMS,
}

PLAIN: dict[str, dict[str, object]] = {
    "renaming": {"name": "variable-renaming", "renames": 20},
    "renaming of ten chains and every name": {
        "name": "variable-renaming",
        "renames": 150,
        "chains": 10,
    },
    "evaluation": {"name": "variable-evaluation", "operations": "+-*"},
    "dag": {"name": "dag"},
    "facts": {"name": "facts", "facts": 300},
    "arithmetic": {"name": "arithmetic", "terms": 4, "operations": "+-*"},
    "unpredictable": {"name": "unpredictable"},
    "corpus of characters": {"name": "corpus", "path": "text.txt", "window": 32},
    "corpus of bytes": {"name": "corpus", "path": "text.txt", "window": 32, "tokens": "byte"},
    "corpus of bpe": {
        "name": "corpus",
        "path": "text.txt",
        "window": 32,
        "tokens": "bpe",
        "vocab_size": 300,
    },
    "mixture": {
        "name": "mixture",
        "parts": [
            {"task": {"name": "arithmetic"}, "weight": 3},
            {"task": {"name": "arithmetic", "operations": "*", "seed": 5}, "weight": 1},
        ],
    },
    "corpus of documents": {"name": "documents", "path": "rows.jsonl", "window": 32},
    "corpus of documents across borders": {
        "name": "documents",
        "path": "rows.jsonl",
        "window": 32,
        "tokens": "bpe",
        "vocab_size": 300,
        "across": True,
    },
    "pairs of characters": {"name": "pairs", "path": "lines.jsonl"},
    "chats of bpe": {"name": "chats", "path": "chats.jsonl", "tokens": "bpe", "vocab_size": 300},
    "problems of bpe": {
        "name": "gsm8k",
        "path": "problems.jsonl",
        "tokens": "bpe",
        "vocab_size": 300,
    },
    "pairs of bpe": {"name": "pairs", "path": "lines.jsonl", "tokens": "bpe", "vocab_size": 300},
}


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    values = dict(PLAIN[request.param])
    if "path" in values:
        path = tmp_path / str(values["path"])
        path.write_text(FILES[path.name], encoding="utf-8")
        values["path"] = str(path)
    return values


@pytest.fixture
def task(plain: dict[str, object]) -> Task:
    return task_from_plain(plain)


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(vars(left).values(), vars(right).values(), strict=True)
    return all(
        a is b is None or (a.dtype == b.dtype == torch.int64 and torch.equal(a, b))
        for a, b in pairs
    )


def test_every_registered_task_is_checked_here() -> None:
    assert {values["name"] for values in PLAIN.values()} == set(TASKS)


def test_an_example_is_a_pure_function_of_configuration_split_and_index(
    task: Task, plain: dict[str, object]
) -> None:
    other = task_from_plain(plain)
    backwards = {i: other.example_in("train", i) for i in reversed(range(40))}
    assert [task.example_in("train", i) for i in range(40)] == [backwards[i] for i in range(40)]
    assert len({example.text for example in backwards.values()}) > 20


def test_the_seed_changes_the_examples_of_drawn_tasks(task: Task) -> None:
    other = task.changed(seed=1)
    texts = [[t.example_in("train", i).text for i in range(30)] for t in (task, other)]
    assert texts[0] != texts[1]


def test_splits_share_no_content_unless_memorised(task: Task) -> None:
    contents = {s: {task.example_in(s, i).content for i in range(60)} for s in SPLITS}
    leaks = [a < b and contents[a] & contents[b] for a in SPLITS for b in SPLITS]
    assert any(leaks) == task.memorised


def test_every_built_in_batch_equals_one_example_after_the_other(task: Task) -> None:
    for split in SPLITS:
        indices = [5, 0, 17, 3, 5]
        assert same(task.batch(split, indices), Task.batch(task, split, indices))
    assert not same(task.batch("train", [1, 2, 3]), task.batch("train", [1, 2, 4]))


def test_tokens_by_table_equal_tokens_by_tokenizer(task: Task) -> None:
    for i in range(20):
        example = task.example_in("train", i)
        ids, starts = task._tokens(example)
        slow_ids, slow_starts = task._pieces(example)
        assert (ids, list(starts)) == (slow_ids, slow_starts)
        assert task.tokenizer.decode(ids, skip_special=False) == example.text


def expected_labels(task: Task, example: Example) -> dict[int, str]:
    """Position -> spelled label, by counting characters; for tokenizers of characters."""
    labels = {}
    for target in example.targets:
        if target.in_place:
            labels[target.start] = target.text
            continue
        for offset, character in enumerate(target.text):
            labels[target.start + offset - 1] = character
        if task.ends:
            labels[len(example.text) - 1] = "<eos>"
    return labels


@pytest.mark.parametrize("plain", [name for name in PLAIN if "corpus" not in name], indirect=True)
def test_the_labels_spell_the_answer(task: Task) -> None:
    for i in range(20):
        example = task.example_in("train", i)
        labels = [label for label in task.encode(example).labels if label != IGNORE]
        end = "<eos>" if task.ends and not example.targets[0].in_place else ""
        assert task.tokenizer.decode(labels, skip_special=False) == example.answer + end


@pytest.mark.parametrize(
    "plain", [n for n in PLAIN if not n.startswith("corpus") and "bpe" not in n], indirect=True
)
def test_labels_stand_where_the_targets_say(task: Task) -> None:
    for i in range(20):
        example = task.example_in("train", i)
        encoded = task.encode(example)
        found = {
            t: task.tokenizer.token(label)
            for t, label in enumerate(encoded.labels)
            if label != IGNORE
        }
        assert found == expected_labels(task, example)


def test_every_text_fits_the_context_and_leaves_room_for_the_answer(task: Task) -> None:
    for i in range(200):
        example = task.example_in("train", i)
        assert len(task.encode(example).ids) <= task.context_length
        if task.name not in ("corpus", "documents"):
            prompt = task.tokenizer.encode(example.prompt)
            answer = task.tokenizer.encode(example.targets[0].text)
            in_place = example.targets[0].in_place
            assert len(answer) + task.ends <= task.max_answer_tokens
            assert in_place or len(prompt) + task.max_answer_tokens <= task.context_length


def test_the_right_answer_is_right_and_another_is_wrong(task: Task) -> None:
    example = task.example_in("test", 3)
    assert task.grade(example, f" {example.answer}\n")
    assert not task.grade(example, example.answer + "7")


def test_a_task_round_trips_through_yaml(task: Task, tmp_path: Path) -> None:
    write_yaml(tmp_path / "task.yaml", task.plain())
    again = task_from_plain(read_yaml(tmp_path / "task.yaml"))
    assert again == task
    assert hash(again) == hash(task)
    assert again.fingerprint == task.fingerprint
    assert again != task.changed(seed=1)


def test_what_was_computed_does_not_enter_copies_or_equality(
    task: Task, plain: dict[str, object]
) -> None:
    task.batch("train", [0])
    assert task.fingerprint
    assert task.changed() == task_from_plain(plain)
    assert task.changed(seed=3).tokenizer.vocab_size > 0


REPORT = """
import json, sys
from stepwell.tasks import task_from_plain
tasks = [task_from_plain(values) for values in json.loads(sys.argv[1])]
print(json.dumps([[t.fingerprint, t.example_in("train", 1).text] for t in tasks]))
assert "torch" not in sys.modules, "torch was imported"
"""


def test_nothing_depends_on_the_hash_seed_and_nothing_needs_torch(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    reports = [
        subprocess.run(
            [sys.executable, "-c", REPORT, json.dumps(list(PLAIN.values()))],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert reports[0] == reports[1]
    fingerprints = [fingerprint for fingerprint, _ in json.loads(reports[0])]
    assert len(set(fingerprints)) == len(PLAIN)


@pytest.mark.parametrize(
    ("values", "text", "answer"),
    [
        (PLAIN["renaming"] | {"renames": 8}, "1>x;2>W;3>Z;4>l;l>p;p>N;N>z;Z>F;", "12344443"),
        (
            {"name": "variable-evaluation", "chains": 2, "statements": 4, "operations": "+*"},
            "3+2>Y;1+4>t;t*1>N;Y+3>u;",
            "5558",
        ),
        ({"name": "dag", "nodes": 4, "edges": 4}, "Y>S|Y>O;S>X;Y>S;X>O;?", "y"),
        ({"name": "facts"}, "snio>ttw", "ttw"),
        ({"name": "arithmetic"}, "20+3=23", "23"),
    ],
)
def test_examples_are_the_same_on_every_platform_and_version(
    values: dict[str, object], text: str, answer: str
) -> None:
    example = task_from_plain(values).example(1)
    assert (example.text, example.answer) == (text, answer)


def test_an_unknown_split_is_refused(task: Task) -> None:
    for ask in (task.example_in, lambda split, i: task.batch(split, [i])):
        with pytest.raises(UsageError, match="Did you mean 'validation'"):
            ask("valid", 0)


def test_every_field_says_what_it_is() -> None:
    for kind in TASKS.values():
        assert all(field.description for field in kind.model_fields.values()), kind


@pytest.mark.parametrize(
    "values",
    [
        {"name": "variable-renaming", "chains": 11},
        {"name": "variable-renaming", "chains": 4, "renames": 3},
        {"name": "variable-evaluation", "operations": "/"},
        {"name": "variable-evaluation", "operations": ""},
        {"name": "variable-evaluation", "chains": 4, "statements": 3},
        {"name": "dag", "nodes": 5, "edges": 11},
        {"name": "dag", "nodes": 8, "edges": 7},
        {"name": "facts", "offset": 0},
        {"name": "facts", "offset": float("inf")},
        {"name": "arithmetic", "terms": 1},
        {"name": "corpus"},
        {"name": "corpus", "path": "x", "tokens": "word"},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        task_from_plain(values)


def test_padding_is_ignored_and_columns_without_labels_are_left_out() -> None:
    rows = [
        Encoded([1, 2, 3, 4], [IGNORE, 7, IGNORE, IGNORE], [0, 2, 0, 0]),
        Encoded([5, 6], [9, IGNORE], [1, 0]),
        Encoded([5], [9], [1]),
    ]
    batch = Batch.of(rows, pad=8)
    assert batch.ids.tolist() == [[1, 2], [5, 6], [5, 8]]
    assert batch.labels.tolist() == [[IGNORE, 7], [9, IGNORE], [9, IGNORE]]
    assert batch.depths.tolist() == [[0, 2], [1, 0], [1, 0]]
    assert batch.to("cpu").ids.tolist() == batch.ids.tolist()


def test_a_target_that_does_not_fit_the_text_is_refused() -> None:
    assert Example.completion("1+1=", "2").answer == "2"
    for make in (
        lambda: Example.in_place("ab", [(2, "x", 1)]),
        lambda: Example.in_place("ab", [(-1, "x", 1)]),
        lambda: Example.in_place("ab", []),
        lambda: Example.completion("", ""),
        lambda: Example("ab", Example.completion("a", "c").targets),
    ):
        with pytest.raises(DataError):
            make()
