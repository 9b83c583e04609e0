"""Configurations: validated, merged, hashed and written, with errors that name the place."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from stepwell.config import (
    Config,
    fingerprint,
    merge,
    read_yaml,
    write_atomically,
    write_json,
    write_yaml,
)
from stepwell.errors import ConfigError

LAW = settings(deadline=None, derandomize=True, database=None)


class Optimizer(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, ...] = (0.9, 0.999)


class Loop(Config):
    kind: Literal["loop"] = "loop"
    times: int


class Stop(Config):
    at: int


class Run(Config):
    name: str
    steps: int = Field(10, ge=1)
    optimizer: Optimizer = Optimizer()
    second: Optimizer | None = None
    stages: tuple[Optimizer, ...] = ()
    ends: Loop | Stop | None = None
    positions: Literal["all"] | tuple[int, ...] = "all"
    model_name: str = ""


def message_of(**values: object) -> str:
    with pytest.raises(ConfigError) as error:
        Run(**values)
    return str(error.value)


# --- validation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Run needs a value for 'name'."),
        ({"name": "a", "stepz": 3}, "Run has no field 'stepz'. Did you mean 'steps'?"),
        ({"stepz": 3}, "Run has no field 'stepz'. Did you mean 'steps'?"),
        (
            {"name": "a", "steps": 0},
            "Run.steps is 0: Input should be greater than or equal to 1.",
        ),
        (
            {"name": "a", "steps": "../x"},
            "Run.steps is '../x': Input should be a valid integer, "
            "unable to parse string as an integer.",
        ),
        (
            {"name": "a", "optimizer": {"lrate": 1}},
            "Run has no field 'optimizer.lrate'. Known: betas, lr.",
        ),
        (
            {"name": "a", "optimizer": {"lr": -1}},
            "Run.optimizer.lr is -1: Input should be greater than 0.",
        ),
        (
            {"name": "a", "second": {"zzz": 1}},
            "Run has no field 'second.zzz'. Known: betas, lr.",
        ),
        (
            {"name": "a", "stages": [{"lr": 1}, {"beta": 1}]},
            "Run has no field 'stages.1.beta'. Did you mean 'betas'?",
        ),
        (
            {"name": "a", "positions": (0, "one")},
            "Run.positions.1 is 'one': Input should be a valid integer, "
            "unable to parse string as an integer.",
        ),
        ({"name": "a", "self": 1}, "Run has no field 'self'. Known: "),
    ],
)
def test_an_error_names_the_field_the_value_and_the_nearest_name(
    values: dict[str, object], message: str
) -> None:
    assert message_of(**values).startswith(message)


def test_a_long_value_is_shown_short() -> None:
    assert len(message_of(name="a", steps="9" * 500 + "x")) < 200


def test_a_member_of_a_union_is_found_by_its_fields() -> None:
    assert Run(name="a", ends={"times": 3}).ends == Loop(times=3)
    assert Run(name="a", ends={"at": 3}).ends == Stop(at=3)


def test_parsing_says_where_the_values_came_from() -> None:
    assert Run.parse({"name": "a"}, where="run.yaml") == Run(name="a")
    with pytest.raises(ConfigError, match=r"^run\.yaml: Run has no field 'nam'"):
        Run.parse({"nam": "a"}, where="run.yaml")
    with pytest.raises(ConfigError, match=r"^run\.yaml: expected keys and values, got list"):
        Run.parse([1], where="run.yaml")
    with pytest.raises(ConfigError, match=r"^Run: expected keys and values, got NoneType"):
        Run.parse(None)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    run = Run(name="a")
    with pytest.raises(ValidationError, match="frozen"):
        run.steps = 3
    assert run.changed(steps=3) == Run(name="a", steps=3)
    assert run.steps == 10


def test_a_change_is_validated_like_a_new_one() -> None:
    with pytest.raises(ConfigError, match=r"Run\.steps is 0"):
        Run(name="a").changed(steps=0)
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        Run(name="a").changed(step=3)


# --- fingerprints -------------------------------------------------------------------------------

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@LAW
@given(values=st.dictionaries(st.text(), plain))
def test_a_fingerprint_ignores_the_order_of_keys(values: dict[str, object]) -> None:
    assert fingerprint(dict(reversed(values.items()))) == fingerprint(values)


@LAW
@given(a=plain, b=plain)
def test_fingerprints_are_equal_only_where_the_json_is(a: object, b: object) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint(a) == fingerprint(b)) == same


def test_a_fingerprint_is_the_sha256_of_the_canonical_json() -> None:
    canonical = '{"a":[1,2.5,null],"b":"\\u00fc"}'
    expected = hashlib.sha256(canonical.encode()).hexdigest()
    assert fingerprint({"b": "ü", "a": [1, 2.5, None]}) == expected


def test_a_fingerprint_is_that_of_the_values_and_of_every_one() -> None:
    run = Run(name="a", optimizer={"lr": "1e-3"})
    assert run.fingerprint == Run(optimizer=Optimizer(), name="a").fingerprint
    assert run.fingerprint == Run.parse(json.loads(run.model_dump_json())).fingerprint
    others = {"steps": 11, "optimizer": {"lr": 2e-3}, "second": {}, "positions": (0,)}
    changed = [run.changed(**{key: value}).fingerprint for key, value in others.items()]
    assert len({run.fingerprint, *changed}) == 5


# --- merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("steps=3", {"steps": 3}),
        ("optimizer.lr=3e-4", {"optimizer": {"lr": 3e-4}}),
        ("optimizer.lr=-1E+2", {"optimizer": {"lr": -100.0}}),
        ("num-layers=4", {"num_layers": 4}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": None}),
        ("name='3'", {"name": "3"}),
        ("name=nan", {"name": "nan"}),
        ("name=infinity", {"name": "infinity"}),
        ("name=e5", {"name": "e5"}),
        ("path=../data-1", {"path": "../data-1"}),
        ("tie=true", {"tie": True}),
        ("layers=[0, 2]", {"layers": [0, 2]}),
        ("a.b.c={d: 1}", {"a": {"b": {"c": {"d": 1}}}}),
    ],
)
def test_an_assignment_is_read_as_yaml(assignment: str, expected: dict[str, object]) -> None:
    assert merge({}, assignment) == expected


def test_assignments_apply_in_order_over_the_base() -> None:
    base = {"optimizer": {"lr": 1.0, "betas": [0.9]}, "second": None, "steps": 1}
    merged = merge(base, "optimizer.lr=2", "steps=5", "steps=6", "second.lr=3")
    assert merged == {
        "optimizer": {"lr": 2, "betas": [0.9]},
        "second": {"lr": 3},
        "steps": 6,
    }
    assert base == {"optimizer": {"lr": 1.0, "betas": [0.9]}, "second": None, "steps": 1}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("steps.more=3", "'steps' is a single value, not a group"),
        ("steps=[1,", "'[1,' is not valid YAML"),
    ],
)
def test_a_malformed_assignment_is_a_config_error(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        merge({"steps": 1}, assignment)
    assert message in str(error.value)
    assert f"--set {assignment!r}" in str(error.value)


# --- files --------------------------------------------------------------------------------------


def test_a_configuration_survives_its_yaml_file(tmp_path: Path) -> None:
    run = Run(name="zürich: 1e5", optimizer={"lr": 3e-4}, second={}, positions=(1, 2))
    write_yaml(tmp_path / "deep" / "run.yaml", run.plain())
    assert Run.parse(read_yaml(tmp_path / "deep" / "run.yaml")) == run
    assert (tmp_path / "deep" / "run.yaml").read_text(encoding="utf-8").startswith("name: 'zürich")


def test_a_configuration_survives_its_json_file(tmp_path: Path) -> None:
    run = Run(name="zürich", optimizer={"lr": 3e-4})
    write_json(tmp_path / "run.json", run.plain())
    assert Run.parse(read_yaml(tmp_path / "run.json")) == run


def test_a_number_with_an_exponent_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: a\noptimizer: {lr: 3e-4}\n")
    assert Run.parse(read_yaml(tmp_path / "run.yaml")).optimizer.lr == 3e-4


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: a\nsteps: [1,\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml, line 3: not valid YAML"):
        read_yaml(bad)
    bad.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not valid YAML"):
        read_yaml(bad)
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_yaml_tags_run_no_code(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("!!python/object/apply:os.system ['touch ran']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    write_atomically(path, "a longer text")
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert path.stat().st_mode & 0o777 == 0o644


def test_numbers_that_json_lacks_have_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(math.nan)
