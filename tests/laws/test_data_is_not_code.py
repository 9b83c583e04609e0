"""Data is not code: what is loaded from disk runs nothing, whatever it says.

Each carrier holds a payload that leaves a trace where it runs; the control shows that it does run
where somebody lets it. Tokenizers, chat templates, .pt files and cache entries have the same law in
their own tests.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import stepwell as sw
from stepwell.cascade.ladder import LadderConfig
from stepwell.cli.app import run_words
from stepwell.errors import CheckpointError, StepwellError
from stepwell.model.transformer import Transformer
from stepwell.tasks import Pairs
from stepwell.train.checkpoint import OPTIMIZER, read_optimizer


class Touch:
    """A pickle that makes a file where it is loaded as one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that a payload makes."""
    return tmp_path / "it-ran"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory."""
    model = Transformer(sw.presets["tiny"].changed(vocab_size=16))
    model.initialize(0)
    sw.save_model(model, tmp_path / "model")
    return tmp_path / "model"


def script(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w').close()\n"


def test_a_config_that_names_code_of_its_own(directory: Path, trace: Path) -> None:
    path = directory / "config.json"
    named = json.loads(path.read_text()) | {
        "auto_map": {
            "AutoConfig": "configuration_evil.Evil",
            "AutoModelForCausalLM": "modeling_evil.Evil",
        }
    }
    path.write_text(json.dumps(named))
    (directory / "manifest.json").unlink(missing_ok=True)
    for name in ("configuration_evil", "modeling_evil", "__init__", "stepwell"):
        (directory / f"{name}.py").write_text(script(trace) + "class Evil: pass\n")
    assert isinstance(sw.load_model(directory), Transformer)
    assert not trace.exists()
    transformers = pytest.importorskip("transformers")
    with pytest.raises(Exception):  # noqa: B017  # whatever it makes of an empty class
        transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
    assert trace.exists(), "the payload must work where it is let"


@pytest.mark.parametrize("reads", ["train", "ladder"])
def test_a_configuration_that_calls(reads: str, tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"task: !!python/object/apply:os.system ['touch {trace}']\nstages: []\n")
    if reads == "train":
        assert run_words(["train", "--config", str(path), "--dry-run"]) != 0
    else:
        with pytest.raises(StepwellError, match="not valid YAML"):
            LadderConfig.read(path)
    assert not trace.exists()
    yaml.unsafe_load(path.read_text())
    assert trace.exists(), "the payload must work where it is let"


def test_a_data_set_with_a_script(tmp_path: Path, trace: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    for name in ("data.py", "__init__.py", "train.py"):
        (data / name).write_text(script(trace))
    assert len(Pairs(path=data).examples) == 1
    assert not trace.exists()
    exec((data / "data.py").read_text())
    assert trace.exists(), "the payload must work where it is let"


def test_an_optimizer_that_is_a_pickle(directory: Path, trace: Path) -> None:
    model = sw.load_model(directory)
    payload = pickle.dumps({"state": Touch(trace)})
    (directory / OPTIMIZER).write_bytes(payload)
    with pytest.raises((CheckpointError, sw.StepwellError), match=OPTIMIZER):
        read_optimizer(directory, model, None)  # type: ignore[arg-type]
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists(), "the payload must work where it is let"
