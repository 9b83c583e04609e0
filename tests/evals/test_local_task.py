"""Task files: the questions that they make, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwell.errors import ConfigError, DataError, StepwellError
from stepwell.evals.local_task import ChoiceQuestion, OpenQuestion, filled, read_local_task
from stepwell.tasks import Facts

CAPITALS: dict[str, Any] = {
    "kind": "multiple_choice",
    "prompt": "Q: {question}\nA:",
    "documents": [
        {"question": "France?", "choices": ["Rome", "Paris"], "answer": 1},
        {"question": "Italy?", "choices": ["Rome", "Paris", "Oslo"], "answer": "Rome"},
    ],
}
SUMS: dict[str, Any] = {
    "kind": "generate",
    "prompt": "{a}+{b}=",
    "target": "{sum}",
    "documents": [{"a": 1, "b": 2, "sum": 3}, {"a": 2, "b": 2, "sum": 4}],
}


@pytest.fixture
def write(tmp_path: Path):
    def write(values: dict[str, Any], name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_a_choice_is_right_by_its_index_or_by_its_text(write) -> None:
    task = read_local_task(write(CAPITALS))
    assert task.name == "mine"
    assert task.questions() == [
        ChoiceQuestion("Q: France?\nA:", ("Rome", "Paris"), 1),
        ChoiceQuestion("Q: Italy?\nA:", ("Rome", "Paris", "Oslo"), 0),
    ]
    assert task.questions(limit=1) == task.questions()[:1]


def test_choices_may_be_the_same_for_all_documents(write) -> None:
    values = {**CAPITALS, "choices": ["yes, {name}", "no"], "answer": "label"}
    values["documents"] = [{"question": "Is it?", "name": "Ann", "label": 1}]
    [question] = read_local_task(write(values)).questions()
    assert question.choices == ("yes, Ann", "no")
    assert question.answer == 1


def test_the_first_documents_are_shown_and_not_asked(write) -> None:
    path = write(CAPITALS)
    [question] = read_local_task(path, num_fewshot=1).questions()
    assert question.prompt == "Q: France?\nA: Paris\n\nQ: Italy?\nA:"
    [question] = read_local_task(write({**SUMS, "num_fewshot": 1, "delimiter": ""})).questions()
    assert question == OpenQuestion("1+2=3\n\n2+2=", "4")
    assert len(read_local_task(write({**SUMS, "num_fewshot": 1}), num_fewshot=0).questions()) == 2


def test_documents_may_be_lines_of_a_file_beside_the_task(write, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "b": 2, "sum": 3}\n\n{"a": 0, "b": 0, "sum": 0}')
    values = {**SUMS, "data": "rows.jsonl"}
    del values["documents"]
    assert [q.prompt for q in read_local_task(write(values)).questions()] == ["1+2=", "0+0="]


def test_a_task_of_ours_is_asked_in_its_own_words(write) -> None:
    values = {"kind": "task", "task": {"name": "facts", "facts": 8}, "num_documents": 5}
    task, facts = read_local_task(write(values)), Facts(facts=8)
    expected = [facts.example_in("test", number) for number in range(5)]
    assert [(q.prompt, q.target) for q in task.questions()] == [
        (example.prompt, example.answer) for example in expected
    ]
    assert len(task.questions(limit=2)) == 2
    assert len(read_local_task(write({"kind": "task", "task": "facts"})).questions()) == 100


def test_braces_are_doubled() -> None:
    assert filled("{{x}} {x}", {"x": 1}, "here") == "{x} 1"
    assert filled("{x}", {"x": "{y}"}, "here") == "{y}"  # what a document holds is no template


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": None}, "it names no kind"),
        ({"kind": "multiple"}, "no kind 'multiple'. Did you mean 'multiple_choice'"),
        ({"matsh": "math"}, "Generate has no field 'matsh'. Did you mean 'match'"),
        ({"match": "roughly"}, "Generate.match is 'roughly'"),
        ({"prompt": "{c}="}, "document 0 has no field 'c'; its fields are a, b, sum"),
        ({"target": "{a"}, "mine.yaml: '{a': expected '}'"),
        ({"prompt": "{a.real}"}, "mine.yaml: '{a.real}': {a.real} is not the name of a field"),
        ({"prompt": "{a!r}"}, "is not the name of a field"),
        ({"prompt": "{}"}, "is not the name of a field"),
        ({"documents": []}, "either documents or data"),
        ({"data": "rows.jsonl"}, "either documents or data"),
        ({"num_fewshot": 2}, "none is left to be asked"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_a_file_that_is_wrong_says_where(write, changes: dict[str, Any], said: str) -> None:
    path = write({**SUMS, **changes})
    with pytest.raises(ConfigError) as raised:
        read_local_task(path).questions()
    assert said in raised.value.problem


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "expected 0 to 1"),
        ({"question": "?", "choices": ["a", "b"], "answer": "c"}, "or the text of a choice"),
        ({"question": "?", "choices": ["a", "b"], "answer": True}, "expected 0 to 1"),
        ({"question": "?", "choices": ["a"], "answer": 0}, "two or more"),
        ({"question": "?", "choices": "ab", "answer": 0}, "a list of two or more"),
        ({"question": "?", "choices": ["a", "b"]}, "document 2 has no field 'answer'"),
    ],
)
def test_a_document_that_is_wrong_is_named(write, document: dict[str, Any], said: str) -> None:
    documents = [*CAPITALS["documents"], document]
    task = read_local_task(write({**CAPITALS, "documents": documents}))
    with pytest.raises(ConfigError, match="Task mine, document 2") as raised:
        task.questions()
    assert said in raised.value.problem
    assert len(read_local_task(write(CAPITALS)).questions()) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ('{"a": 1}\n{"a":', "line 2: not valid JSON"),
        ("[1]", "line 1: expected an object"),
    ],
)
def test_a_file_of_documents_that_is_wrong_is_named(
    write, tmp_path: Path, content: str | None, said: str
) -> None:
    values = {**SUMS, "data": "rows.jsonl"}
    del values["documents"]
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"rows\.jsonl") as raised:
        read_local_task(write(values)).questions()
    assert said in raised.value.problem


@pytest.mark.parametrize("task", ["variable-renaming", {"name": "no-such"}, {"fact": 3}])
def test_a_task_that_cannot_be_asked_is_refused(write, task: Any) -> None:
    with pytest.raises(StepwellError):
        read_local_task(write({"kind": "task", "task": task})).questions()


def test_a_file_that_is_no_mapping_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="expected keys and values"):
        read_local_task(tmp_path / "empty.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_local_task(tmp_path / "gone.yaml")
