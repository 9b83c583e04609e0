"""The exception tree: drawn as it is, copied whole, and helpful."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from stepwell import errors
from stepwell.errors import ConfigError, StepwellError, UsageError, suggest

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, StepwellError)
]


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, str] = {}
    branch: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([ │├└─]*)(\w*Error)  ", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        branch = [(at, parent) for at, parent in branch if at < depth]
        drawn[name] = branch[-1][1] if branch else "Exception"
        branch.append((depth, name))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in TREE}


def test_what_a_user_asked_wrongly_exits_with_2_and_the_rest_with_1() -> None:
    assert {kind: kind.exit_code for kind in TREE} == {
        kind: 2 if issubclass(kind, UsageError) else 1 for kind in TREE
    }


@pytest.mark.parametrize("kind", TREE)
def test_an_error_says_the_problem_and_then_the_fix(kind: type[StepwellError]) -> None:
    assert str(kind("The cup is empty.")) == "The cup is empty."
    error = kind("The cup is empty.", fix="fill it.")
    assert str(error) == "The cup is empty.\nFix: fill it."
    assert (error.problem, error.fix) == ("The cup is empty.", "fill it.")


@pytest.mark.parametrize("kind", TREE)
def test_an_error_crosses_processes_whole(kind: type[StepwellError]) -> None:
    """As `concurrent.futures` and `multiprocessing` send it."""
    error = kind("The cup is empty.", fix="fill it.")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is kind
        assert str(twin) == str(error)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("widht", "Did you mean 'width'?"),
        ("num-layers", "Did you mean 'num_layers'?"),
        ("zzz", "Known: num_layers, theta, width."),
    ],
)
def test_a_suggestion_is_the_nearest_word_or_all_of_them(word: str, sentence: str) -> None:
    assert suggest(word, {"width", "num_layers", "theta"}) == sentence


def test_a_suggestion_from_nothing_says_so() -> None:
    assert suggest("width", []) == "None are known."


def test_a_usage_error_is_caught_as_what_it_is() -> None:
    with pytest.raises(UsageError):
        raise ConfigError("no")
