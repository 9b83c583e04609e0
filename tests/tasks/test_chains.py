"""Variable renaming and evaluation, against an interpreter of their little language."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from typing import Any

import pytest
from support.timing import fastest

from stepwell.tasks import Example, VariableEvaluation, VariableRenaming
from stepwell.tasks.chains import ChainTask

TASKS: list[ChainTask] = [
    VariableRenaming(renames=20),
    VariableRenaming(renames=150),
    VariableRenaming(renames=400, chains=10),
    VariableRenaming(renames=1, chains=1),
    VariableEvaluation(),
    VariableEvaluation(chains=2, statements=150, operations="+-*"),
]


def interpret(text: str) -> list[tuple[int, str, int]]:
    """(position of the name, value, depth) of each statement, run one after the other by Python."""
    scope: dict[str, int] = {}
    depths: dict[str, int] = {}
    found = []
    for statement in re.finditer(r"([^;>]+)>([a-zA-Z]);", text):
        source, name = statement.groups()
        names = re.findall("[a-zA-Z]", source)
        depth = 1 + max((depths[used] for used in names), default=0)
        scope[name] = eval(source, {}, dict(scope)) % 10
        depths[name] = depth
        found.append((statement.start(2), str(scope[name]), depth))
    return found


def labelled(example: Example) -> list[tuple[int, str, int]]:
    assert all(target.in_place for target in example.targets)
    return [(target.start, target.text, target.depth) for target in example.targets]


class Forgetful(VariableRenaming):
    """The control: values that change on their way."""

    def step(self, _rng: random.Random, name: str, value: int, /) -> tuple[str, int]:
        return name, (value + 1) % 10


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_label_is_what_an_interpreter_finds(task: ChainTask) -> None:
    for index in range(50):
        example = task.example(index)
        assert labelled(example) == interpret(example.text)
        assert len(example.targets) == task.num_statements
        assert "".join(re.findall(r"[^;]+>[a-zA-Z];", example.text)) == example.text


def test_a_wrong_label_would_be_found() -> None:
    example = Forgetful(renames=20).example(0)
    assert labelled(example) != interpret(example.text)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_no_name_that_holds_a_value_is_overwritten(task: ChainTask) -> None:
    for index in range(20):
        holders: list[str] = []
        for statement in task.example(index).text.split(";")[:-1]:
            source, name = statement.split(">")
            if source[0].isalpha():
                holders.remove(source[0])  # its value moves on
            assert name not in holders
            holders.append(name)
        assert len(holders) == task.chains


def test_no_name_comes_twice_while_there_are_names_left() -> None:
    names = [target.start for target in VariableRenaming(renames=52).example(0).targets]
    text = VariableRenaming(renames=52).example(0).text
    assert len({text[start] for start in names}) == 52


def test_values_are_one_to_chains_with_ten_written_as_nought() -> None:
    assert VariableRenaming(chains=10).example(0).answer[:10] == "1234567890"
    assert set(VariableRenaming(chains=3).example(0).answer) == set("123")


def shares(task: ChainTask, **where: Any) -> Counter[str]:
    """How often each label comes at a depth or at a position."""
    targets = [t for index in range(2000) for t in task.example(index).targets]
    return Counter(t.text for t in targets if all(getattr(t, k) == v for k, v in where.items()))


@pytest.mark.parametrize(
    ("task", "where", "values"),
    [
        (VariableRenaming(renames=16), {"start": 62}, 4),
        (VariableRenaming(renames=16), {"depth": 4}, 4),
        (VariableEvaluation(statements=16, operations="+-*"), {"depth": 3}, 10),
        (VariableEvaluation(statements=16, operations="*"), {"start": 94}, 10),
    ],
)
def test_guessing_is_right_as_often_as_chance_allows(
    task: ChainTask, where: dict[str, int], values: int
) -> None:
    counts = shares(task, **where)
    expected = counts.total() / values
    assert len(counts) == values
    assert max(abs(count - expected) for count in counts.values()) < 4 * expected**0.5


def test_depth_grows_with_the_position() -> None:
    targets = [VariableRenaming(renames=150).example(i).targets for i in range(200)]
    for position in (10, 50, 149):
        mean = sum(row[position].depth for row in targets) / 200
        assert mean == pytest.approx(2 + (position - 4) / 4, rel=0.05)


def test_a_batch_of_64_takes_less_than_30_ms() -> None:
    """Some 4 ms where nothing else runs."""
    task = VariableRenaming(renames=20)
    steps = itertools.count()

    def batch() -> None:
        step = next(steps)
        task.batch("train", range(64 * step, 64 * step + 64))

    assert fastest(batch, enough=0.03) < 0.03
