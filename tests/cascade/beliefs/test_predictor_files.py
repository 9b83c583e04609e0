"""The predictor on disk: the same to the bit, and a typed error for what is not whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from support.simulated_answers import FEATURES, STAGES, answers

from stepwell.cascade.beliefs.predictor import ARRAYS, DESCRIPTION, Predictor
from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import DataError, FormatError


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.fit(*answers(900, seed=0), hidden=32)


def test_disk_gives_back_the_same_beliefs(predictor: Predictor, tmp_path: Path) -> None:
    seen, _ = answers(50, seed=14)
    predictor.save(tmp_path / "new")
    predictor.save(tmp_path / "new")  # over itself
    again = Predictor.load(tmp_path / "new")
    np.testing.assert_array_equal(again.paths(seen), predictor.paths(seen))
    assert again.feature_set == FEATURES
    assert again.num_stages == STAGES
    assert {path.name for path in (tmp_path / "new").iterdir()} == {ARRAYS, DESCRIPTION}
    straight = Predictor.fit(*answers(30, seed=15))  # without a hidden unit
    straight.save(tmp_path)
    np.testing.assert_array_equal(Predictor.load(tmp_path).paths(seen), straight.paths(seen))


Damage = Callable[[dict[str, object], dict[str, FloatArray]], None]


def rewritten(directory: Path, damage: Damage) -> None:
    """The files with something changed, under a hash that fits."""
    plain = json.loads((directory / DESCRIPTION).read_text())
    arrays = load((directory / ARRAYS).read_bytes())
    damage(plain, arrays)
    content = save(arrays)
    (directory / ARRAYS).write_bytes(content)
    plain["sha256"] = hashlib.sha256(content).hexdigest()
    (directory / DESCRIPTION).write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda plain, _: plain.update(format_version=99), FormatError, "format_version 99"),
        (lambda plain, _: plain.update(kind="stage costs"), DataError, "expected a document"),
        (lambda plain, _: plain.update(hidden="x"), DataError, "damaged at 'hidden'"),
        (lambda plain, _: plain.update(hidden=7), DataError, "inner is"),
        (lambda plain, _: plain.update(stages=4), DataError, "expected"),
        (lambda plain, _: plain.update(stages=0), DataError, "stages is 0"),
        (lambda plain, _: plain.update(groups=["astrology"]), DataError, "does not have"),
        (lambda plain, _: plain["features"].update(pair=[]), DataError, "does not have"),
        (lambda _, arrays: arrays.pop("base"), DataError, "base is"),
        (lambda _, arrays: arrays.update(base=np.ones(5)), DataError, r"base is \[5\]"),
        (lambda _, arrays: arrays.pop("heads.3.curves"), DataError, "heads.3.curves"),
    ],
)
def test_files_of_others_are_typed_errors(
    predictor: Predictor, tmp_path: Path, damage: Damage, error: type[Exception], match: str
) -> None:
    predictor.save(tmp_path)
    rewritten(tmp_path, lambda plain, arrays: None)
    Predictor.load(tmp_path)
    rewritten(tmp_path, damage)
    with pytest.raises(error, match=match):
        Predictor.load(tmp_path)


def test_damaged_and_missing_files_are_typed_errors(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Predictor.load(tmp_path)
    predictor.save(tmp_path)
    content = bytearray((tmp_path / ARRAYS).read_bytes())
    content[-1] ^= 1
    (tmp_path / ARRAYS).write_bytes(content)
    with pytest.raises(DataError, match="is damaged: its SHA-256"):
        Predictor.load(tmp_path)
    (tmp_path / ARRAYS).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Predictor.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        Predictor.load(tmp_path)
