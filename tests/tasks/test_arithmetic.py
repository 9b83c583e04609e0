"""Arithmetic, against Python's own."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from stepwell.tasks import Arithmetic

TASKS = [
    Arithmetic(),
    Arithmetic(digits=1, terms=5, operations="*"),
    Arithmetic(digits=18, terms=16, operations="+-*"),
    Arithmetic(digits=4, terms=3, operations="-"),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_answer_is_right_and_every_length_is_kept(task: Arithmetic) -> None:
    for index in range(300):
        example = task.example(index)
        numbers = re.findall("[0-9]+", example.prompt)
        assert example.prompt.endswith("=")
        assert int(example.answer) == eval(example.prompt[:-1])
        assert 2 <= len(numbers) <= task.terms
        assert all(str(int(number)) == number for number in numbers)
        assert max(map(len, numbers)) <= task.digits
        assert example.targets[0].depth == sum(map(len, numbers))


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_the_longest_question_has_room(task: Arithmetic) -> None:
    largest = "9" * task.digits
    for operation in task.operations:
        question = operation.join([largest] * task.terms) + "="
        answers = [str(eval(question[:-1]))]
        if operation == "-":
            answers.append(str(-(10**task.digits - 1) * (task.terms - 1)))
        for answer in answers:
            assert len(answer) + 1 <= task.max_answer_tokens
            assert len(question) + task.max_answer_tokens <= task.context_length


def test_every_depth_up_to_the_knobs_is_drawn() -> None:
    depths = Counter(Arithmetic(digits=3, terms=2).example(i).targets[0].depth for i in range(900))
    assert sorted(depths) == [2, 3, 4, 5, 6]
    assert depths[2] > 50
