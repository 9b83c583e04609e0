"""Flags made of models: every field has one, and what is given comes back nested."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
from cyclopts import App, Group

from stepwell.cli.configured import BY_THE_TASK, task_flags, training_flags
from stepwell.cli.flags import given_values, model_flags, simple_type, with_flags
from stepwell.config import Config
from stepwell.errors import UsageError
from stepwell.model.config import ModelConfig
from stepwell.tasks import TASKS
from stepwell.train.config import LoraConfig, OptimizerConfig, TrainerConfig

GROUP = Group("Group")


class Nested(Config):
    depth: int = 1


class Sample(Config):
    """A field of each kind."""

    count: int = pydantic.Field(default=3, description="how many")
    rate: float = 1e-4
    word: str
    place: Path = Path("here")
    kind: Literal["a", "b"] = "a"
    on: bool = True
    maybe: Annotated[int, pydantic.Field(ge=1)] | None = None
    several: tuple[int, ...] = ()
    nested: Nested | None = None


FLAGS = model_flags(Sample, GROUP, at=("part",), names={"word": ("-w", "--word")})


def parse(*tokens: str) -> dict[str, object]:
    """The nested values of a command line."""
    seen: dict[str, object] = {}

    def command(**given: object) -> None:
        seen.update(given_values(FLAGS, given))

    app = App(name="sample", result_action="return_value")
    app.default(with_flags(command, FLAGS))
    app(list(tokens), exit_on_error=False, print_error=False)
    return seen


def test_what_is_not_given_is_not_there() -> None:
    assert parse() == {}


@pytest.mark.parametrize(
    ("tokens", "field", "value"),
    [
        (["--count", "3"], "count", 3),
        (["--rate", "3e-4"], "rate", 3e-4),
        (["-w", "text"], "word", "text"),
        (["--place", "a/b"], "place", Path("a/b")),
        (["--kind", "b"], "kind", "b"),
        (["--on"], "on", True),
        (["--no-on"], "on", False),
        (["--maybe", "5"], "maybe", 5),
        (["--several", "5", "--several", "6"], "several", (5, 6)),
        (["--nested", "{depth: 4}"], "nested", {"depth": 4}),
    ],
)
def test_a_flag_sets_its_field(tokens: list[str], field: str, value: object) -> None:
    assert parse(*tokens) == {"part": {field: value}}


def test_yaml_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--nested"):
        parse("--nested", "{")


def test_types_of_flags() -> None:
    assert simple_type(Annotated[int, 5] | None) is int
    assert simple_type(tuple[Annotated[str, 5], ...]) == tuple[str, ...]
    assert simple_type(int | tuple[int, ...] | None) is None
    assert simple_type(Nested) is None


def test_every_field_of_training_has_a_flag_and_no_two_share_one() -> None:
    for kind in TASKS.values():
        flags = training_flags([kind])
        names = [flag.parameter.name for flag in flags]
        assert len(names) == len(set(names))
        expected = {("task", name) for name in kind.model_fields}
        expected |= {("optimizer", name) for name in OptimizerConfig.model_fields}
        expected |= {("model", name) for name in ModelConfig.model_fields.keys() - {*BY_THE_TASK}}
        expected |= {(name,) for name in TrainerConfig.model_fields}
        expected |= {("lora", name) for name in LoraConfig.model_fields}
        expected -= {("model",), ("task",), ("optimizer",), ("lora",)}
        assert {flag.field for flag in flags} == expected


def test_flags_that_tasks_share_are_one() -> None:
    names = [flag.parameter.name for flag in task_flags(list(TASKS.values()))]
    assert names.count("data_seed") == names.count("operations") == 1


def test_help_says_what_the_field_says() -> None:
    [flag] = [flag for flag in FLAGS if flag.parameter.name == "count"]
    parameter = flag.parameter.annotation.__metadata__[0]
    assert parameter.help == "How many."
    assert parameter.show_default == "3"


def test_the_body_keeps_its_own_parameters_but_those_left_out() -> None:
    def body(*, own: int = 1, other: int = 2, **given: object) -> None: ...

    names = list(inspect.signature(with_flags(body, FLAGS, without=("other",))).parameters)
    assert names == ["own", *(flag.parameter.name for flag in FLAGS)]
