"""Unpredictable answers: spelled as promised, fixed by the prompt, told by nothing in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from stepwell.tasks import Example, Unpredictable

TASKS = [
    Unpredictable(),
    Unpredictable(key_digits=4, options=2),
    Unpredictable(key_digits=12, options=26),
]
Guess = Callable[[str, str], str]  # (key, options) -> letter

GUESSES: dict[str, Guess] = {
    "first": lambda _, options: options[0],
    "last": lambda _, options: options[-1],
    "earliest in the alphabet": lambda _, options: min(options),
    "by the first digit": lambda key, options: options[int(key[0]) % len(options)],
    "by the key's sum": lambda key, options: options[sum(map(ord, key)) % len(options)],
}


def parts(example: Example) -> tuple[str, str]:
    """(key, options) of a question."""
    key, options = example.prompt[:-1].split(":")
    return key, options


def surplus(examples: list[Example], guess: Guess) -> float:
    """How many standard deviations a guess is right more often than once in `depth`."""
    chances = [1 / example.targets[0].depth for example in examples]
    right = sum(guess(*parts(example)) == example.answer for example in examples)
    return (right - sum(chances)) / sum(p * (1 - p) for p in chances) ** 0.5


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_the_answer_is_one_of_the_letters_offered_and_depth_their_number(
    task: Unpredictable,
) -> None:
    for index in range(300):
        example = task.example(index)
        key, options = parts(example)
        assert re.fullmatch("[0-9]+:[a-z]+>", example.prompt)
        assert len(key) == task.key_digits
        assert 2 <= len(options) == len(set(options)) <= task.options
        assert example.answer in options
        assert example.targets[0].depth == len(options)


def test_every_number_of_options_is_as_likely() -> None:
    task = Unpredictable(options=5)
    depths = Counter(task.example(index).targets[0].depth for index in range(4000))
    assert sorted(depths) == [2, 3, 4, 5]
    assert all(abs(count - 1000) < 4.5 * 750**0.5 for count in depths.values())


@pytest.mark.parametrize("name", GUESSES)
def test_no_rule_is_right_more_often_than_chance(name: str) -> None:
    task = Unpredictable()
    examples = [task.example(index) for index in range(4000)]
    assert abs(surplus(examples, GUESSES[name])) < 4


def test_a_rule_would_be_found() -> None:
    """The control: of answers that follow a rule one time in ten, the rule is seen."""
    examples = [Unpredictable().example(index) for index in range(4000)]
    ruled = [
        Example.completion(each.prompt, parts(each)[1][0], depth=each.targets[0].depth)
        if number % 10 == 0
        else each
        for number, each in enumerate(examples)
    ]
    assert surplus(ruled, GUESSES["first"]) > 6


def test_a_prompt_has_one_answer_and_with_another_seed_another() -> None:
    task, wide, other = Unpredictable(), Unpredictable(options=26), Unpredictable(seed=1)
    examples = [task.example(index) for index in range(2000)]
    assert all(wide.answer_to(each.prompt) == each.answer for each in examples)
    redrawn = [
        Example.completion(each.prompt, other.answer_to(each.prompt), each.targets[0].depth)
        for each in examples
    ]
    told = {each.prompt: each.answer for each in examples}
    assert abs(surplus(redrawn, lambda key, options: told[f"{key}:{options}>"])) < 4


def test_prompts_do_not_come_twice() -> None:
    prompts = [Unpredictable().example(index).prompt for index in range(20_000)]
    assert len(set(prompts)) == len(prompts)
