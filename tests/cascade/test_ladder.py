"""The ladder file: it comes back as it was written, and what is wrong in it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwell.cascade.ladder import Budget, LadderConfig, PolicyConfig, fitted_directory
from stepwell.errors import ConfigError, FormatError, StepwellError

SERVER = {"name": "large", "server": "http://127.0.0.1:8001/v1"}
STAGES = [{"name": "small", "model": "../small"}, {"name": "large", "model": "../large"}]
WHOLE = {
    "format_version": 1,
    "stages": [
        {"name": "small", "model": "../small", "train": {"task": "facts", "steps": 700}},
        {"name": "large", "model": "/models/large"},
    ],
    "policy": {"lambda": 2.5, "risk": {"kappa": -0.5}},
    "costs": "flops",
    "serving": {"max_rows": 8},
    "sampling": {"temperature": 0.0, "stop": ["\n"], "max_new_tokens": 3},
}


def written(path: Path, **changes: Any) -> Path:
    """A ladder file of two stages with some keys changed."""
    path.write_text(yaml.safe_dump({"stages": STAGES, **changes}), encoding="utf-8")
    return path


def test_a_ladder_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ladder.yaml"
    for ladder in (LadderConfig.parse(WHOLE), LadderConfig.parse({"stages": STAGES})):
        ladder.write(path)
        assert LadderConfig.read(path) == ladder
    changed = ladder.changed(policy=PolicyConfig(lam=3.0))
    changed.write(path)
    assert LadderConfig.read(path) != ladder
    assert LadderConfig.read(path).policy.lam == 3.0


def test_the_file_holds_what_was_said_and_its_version(tmp_path: Path) -> None:
    path = tmp_path / "ladder.yaml"
    LadderConfig.parse(WHOLE).write(path)
    assert yaml.safe_load(path.read_text()) == WHOLE
    LadderConfig.parse({"stages": STAGES}).write(path)
    assert yaml.safe_load(path.read_text()) == {"format_version": 1, "stages": STAGES}


def test_lambda_is_spelled_lambda(tmp_path: Path) -> None:
    path = written(tmp_path / "ladder.yaml", policy={"lambda": 4})
    ladder = LadderConfig.read(path)
    assert ladder.policy.lam == 4.0
    ladder.write(path)
    assert yaml.safe_load(path.read_text())["policy"] == {"lambda": 4.0}
    with pytest.raises(ConfigError, match=r"policy\.lamda'.* 'lambda'"):
        LadderConfig.read(written(path, policy={"lamda": 4}))


def test_a_bare_key_says_nothing(tmp_path: Path) -> None:
    plain = LadderConfig.parse({"stages": STAGES})
    path = tmp_path / "ladder.yaml"
    for empty in (None, {}):
        sections = dict.fromkeys(("policy", "serving", "sampling"), empty)
        assert LadderConfig.read(written(path, **sections)) == plain
    with pytest.raises(ConfigError, match="needs a value for 'stages'"):
        LadderConfig.read(written(path, stages=None))
    for bare in ({"policy": {"risk": None, "lambda": None}}, {"serving": {"max_rows": None}}):
        assert LadderConfig.read(written(path, **bare)) == plain


def test_sizes_and_kinds_of_lambda_are_understood(tmp_path: Path) -> None:
    """Those that the documentation shows."""
    lambdas = {"budget": 0.4}, {"certificate": {"epsilon": 0.01}}, "auto", 2.5
    for lam in lambdas:
        config = LadderConfig.read(written(tmp_path / "l.yaml", policy={"lambda": lam}))
        config.write(tmp_path / "again.yaml")
        assert LadderConfig.read(tmp_path / "again.yaml") == config
    assert Budget(budget=0.4) in {
        LadderConfig.read(written(tmp_path / "l.yaml", policy={"lambda": lam})).policy.lam
        for lam in lambdas
    }
    sized = LadderConfig.read(written(tmp_path / "l.yaml", serving={"kv_cache_bytes": "1.5GiB"}))
    assert sized.serving.kv_cache_bytes == 3 * 2**29


def test_a_newer_file_is_refused_whatever_else_it_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "ladder.yaml", format_version=2, certificate={"epsilon": 0.02})
    with pytest.raises(FormatError, match=r"ladder\.yaml has format_version 2.* up to 1"):
        LadderConfig.read(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": []}, "has no field 'stage'. Did you mean 'stages'?"),
        ({"policy": {"risk": {"kapa": 1}}}, "'policy.risk.kapa'. Did you mean 'kappa'?"),
        ({"stages": [STAGES[0], STAGES[0]]}, "two stages share a name: small, small"),
        ({"stages": STAGES[:1]}, "LadderConfig.stages"),
        ({"stages": "small"}, "LadderConfig.stages is 'small'"),
        ({"stages": [STAGES[0], {"name": "large"}]}, "'large' has neither model nor server"),
        ({"stages": [STAGES[0], {**STAGES[1], "launch": "x"}]}, "launch is for a server"),
        ({"stages": [STAGES[0], {**SERVER, "train": {}}]}, "train is not for a server"),
        ({"stages": [STAGES[0], {**SERVER, "server": "localhost"}]}, "stages.1.server"),
        ({"costs": "price"}, "costs is price, but stage 'small' has none"),
        ({"predictor": {"hiden": 3}}, "Did you mean 'hidden'?"),
        (
            {"questions": {"task": "facts", "file": "x"}},
            "give a task, a file or a dataset, one of them",
        ),
        ({"serving": {"kv_cache_bytes": "2 pints"}}, "serving.kv_cache_bytes is '2 pints'"),
        ({"policy": {"lambda": {"budget": -1}}}, "policy.lambda"),
        ({"policy": {"lambda": {"certificate": {"epsilon": 2}}}}, "policy.lambda"),
        ({"stages": [STAGES[0], {"name": "", "model": "x"}]}, "stages.1.name"),
        ({"stages": [STAGES[0], {"name": "large", "model": 7}]}, "stages.1.model is 7"),
        ({"stages": [STAGES[0], {**STAGES[1], "train": 3}]}, "stages.1.train is 3"),
        ({"policy": {"lambda": "car"}}, "policy.lambda is 'car'"),
        ({"policy": {"lambda": -1}}, "policy.lambda is -1: expected auto, a number from 0"),
        ({"policy": {"lambda": float("nan")}}, "policy.lambda"),
        ({"policy": {"mode": "lossy"}}, "policy.mode is 'lossy'"),
        ({"costs": "guessed"}, "costs is 'guessed'"),
        ({"serving": {"max_rows": 0}}, "serving.max_rows is 0"),
        ({"format_version": 0}, "format_version is 0"),
        ({"format_version": "new"}, "format_version is 'new'"),
        ({"sampling": {"temprature": 0}}, "no field 'temprature'. Did you mean 'temperature'?"),
        ({"sampling": {"top_p": 2}}, "top_p is 2"),
        ({"sampling": {"n": 4}}, "one answer to a prompt, n is 4"),
        ({"sampling": [1]}, "LadderConfig.sampling is [1]"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_field(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = written(tmp_path / "mine.yaml", **changes)
    with pytest.raises(ConfigError) as caught:
        LadderConfig.read(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "stages: [", "7"])
def test_a_file_that_is_no_ladder_is_a_typed_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(StepwellError, match=r"mine\.yaml"):
        LadderConfig.read(path)
    with pytest.raises(ConfigError, match=r"other\.yaml"):
        LadderConfig.read(tmp_path / "other.yaml")


def test_what_was_fitted_lies_beside_the_file() -> None:
    assert fitted_directory("runs/demo/ladder.yaml") == Path("runs/demo/ladder.fitted")
