"""A command line run in this process, and a model small enough to train in a moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stepwell.cli import main

TINY = (
    *("--task", "facts", "--facts", "8", "--num-layers", "1", "--width", "16"),
    *("--num-heads", "1", "--context-length", "16", "--batch-size", "4", "--steps", "5"),
    *("--evaluation-batches", "1", "--samples", "1", "--log-every", "1"),
)


@dataclass(frozen=True)
class Ended:
    """How a command line ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What standard output holds, which must be one JSON document."""
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command line as `stepwell` would, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("STEPWELL_RUNS", raising=False)

    def call(*words: object) -> Ended:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of five steps; to be read only."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *TINY, "--runs", str(runs), "--run-name", "tiny", "--quiet"]) == 0
    return runs / "tiny"


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command line of a tiny run in a folder of its own."""
    return ["train", *TINY, "--runs", str(tmp_path / "runs"), "--run-name", "tiny"]
