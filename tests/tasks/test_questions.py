"""Questions: which are asked, when an answer is right, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stepwell as sw
from stepwell.errors import DataError, PromptError, StepwellError, UsageError
from stepwell.tasks.questions import Questions, number_in
from stepwell.text.prompt_template import PromptTemplate


def rows(tmp_path: Path, *values: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_a_range_of_a_task_is_its_test_examples() -> None:
    task = sw.tasks.Arithmetic(digits=2)
    asked = Questions.of_task(task, 3, 8)
    examples = [task.example_in("test", i) for i in range(3, 8)]
    assert [(each.prompt, each.expected) for each in asked.items] == [
        (example.prompt, example.answer) for example in examples
    ]
    assert {example.split for example in examples} == {"test"}
    assert all(each.grade(f" {each.expected}\n") for each in asked.items)
    assert not any(each.grade(each.expected + "0") for each in asked.items)
    assert len(Questions.of_task(task).items) == 100
    validation = Questions.of_task(task, 0, 9, split="validation")
    assert [item.prompt for item in validation.items] == [
        task.example_in("validation", i).prompt for i in range(9)
    ]
    with pytest.raises(UsageError, match="no split 'valid'"):
        Questions.of_task(task, split="valid")


def test_a_question_that_comes_often_is_asked_once_and_weighs_more() -> None:
    asked = Questions.of_task(sw.tasks.Facts(facts=4), 0, 50)
    distinct = asked.distinct()
    assert len(distinct) <= 4
    assert sum(each.weight for each in distinct) == 50
    counts = [sum(item.prompt == each.prompt for item in asked.items) for each in distinct]
    assert [each.weight for each in distinct] == counts


@pytest.mark.parametrize(
    "task", [sw.tasks.VariableRenaming(), sw.tasks.DagReachability()], ids=lambda task: task.name
)
def test_a_task_without_answers_after_prompts_is_refused(task) -> None:
    with pytest.raises(UsageError, match="does not ask for one answer"):
        Questions.of_task(task)


def test_the_rows_of_a_file_are_compared_as_texts_or_by_number(tmp_path) -> None:
    path = rows(tmp_path, {"prompt": "2+3=", "answer": " 5"}, {"prompt": "9/2=", "answer": 4.5})
    first, second = Questions.read(path).items
    assert (first.prompt, first.expected) == ("2+3=", " 5")
    assert [first.grade(text) for text in ("5", "5 ", "5.0", "it is 5")] == [
        True,
        True,
        False,
        False,
    ]
    assert second.grade("4.5")
    first, second = Questions.read(path, check="number").items
    assert [first.grade(text) for text in ("5", "5.00", "it is 5.", "5 or 6")] == [
        *(True, True, True),
        False,
    ]
    assert first.final("so 3 and 1,205.0 apples") == "1205", "which is what is voted on"
    assert second.grade("nine halves, 4.50")


def test_rows_fill_a_template(tmp_path) -> None:
    template = PromptTemplate("sums", ("question",), "Q: {question}\nA:")
    path = rows(tmp_path, {"question": "2+3", "answer": "5"}, {"qestion": "1", "answer": "1"})
    [first] = Questions.read(path, template=template, end=1).items
    assert first.prompt == "Q: 2+3\nA:"
    with pytest.raises(PromptError, match=r"rows\.jsonl, line 2: .* mean 'qestion'"):
        Questions.read(path, template=template)


def test_a_range_of_a_file_ends_with_it(tmp_path) -> None:
    path = rows(tmp_path, *({"prompt": str(n), "answer": "x"} for n in range(5)))
    assert [each.prompt for each in Questions.read(path, start=1, end=3).items] == ["1", "2"]
    assert [each.prompt for each in Questions.read(path, start=3, end=99).items] == ["3", "4"]
    with pytest.raises(UsageError, match="has 5 rows; There are no questions from 5 up to 5"):
        Questions.read(path, start=5)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", "12"),
        ("it is 1,200.50 in all.", "1200.5"),
        ("10-3", "3"),
        ("= -3", "-3"),
        ("-0", "0"),
        ("007", "7"),
        ("100", "100"),
        ("#### 42\n", "42"),
        ("x2 is 3", "3"),
        ("none", ""),
        ("", ""),
    ],
)
def test_the_last_number_of_a_text(text, number) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("row", "check", "said"),
    [
        ([1], "exact", "line 1: expected an object"),
        ({"answer": "5"}, "exact", 'line 1: expected a text under "prompt"'),
        ({"prompt": "2"}, "exact", 'text or a number under "answer", found nothing'),
        ({"prompt": "2", "answer": True}, "exact", "found true"),
        ({"prompt": "2", "answer": ["5"]}, "exact", r'found \["5"\]'),
        ({"prompt": "2", "answer": "five"}, "number", "no number in the answer 'five'"),
        ({"prompt": "2", "answer": "5"}, "numbr", "Did you mean 'number'"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(tmp_path, row, check, said) -> None:
    with pytest.raises(StepwellError, match=said):
        Questions.read(rows(tmp_path, row), check=check)


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(DataError, match="nowhere"):
        Questions.read("nowhere.jsonl")


def test_conversations_are_voted_on_by_their_answers_without_the_thinking(tmp_path) -> None:
    path = rows(tmp_path, *({"question": f"{n}?", "answer": f"so #### {n},000"} for n in range(60)))
    asked = Questions.of_task(sw.tasks.GSM8K(path=path), 0, 1)
    [question] = asked.items
    number = question.final(question.expected)
    assert number.endswith("000")
    assert "," not in number
    assert asked.spelled
    assert question.grade(f"<think>\nother steps\n</think>\n\n{number}")
    assert not question.grade(f"<think>\n{number}\n</think>\n\n1")
