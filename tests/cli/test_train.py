"""Training by command line: plan, resume, Ctrl-C, and the question before a run is replaced."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import threading
from pathlib import Path

import pytest

from stepwell.cli.progress import TrainingProgress


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of the best weights."""
    files: dict[str, str] = json.loads((folder / "manifest.json").read_text())["files"]
    return files


def test_a_run_says_plan_result_and_what_to_type_next(run, words, tmp_path: Path) -> None:
    ended = run(*words)
    assert ended.code == 0
    for word in ("parameters", "5 steps of 4 examples", "memory", "disk", "time", "5/5", "tok/s"):
        assert word in ended.err
    assert "best weights" in ended.out
    assert "loss" in ended.out
    assert f"stepwell generate {tmp_path}/runs/tiny '" in ended.err
    assert f"stepwell inspect {tmp_path}/runs/tiny '" in ended.err


def test_json_is_the_result_and_quiet_is_quiet(run, words) -> None:
    ended = run(*words, "--json", "--quiet")
    assert ended.err == ""
    assert ended.json["step"] == 5
    assert ended.json["metrics"]["loss"] > 0


def test_the_same_command_goes_on_where_ctrl_c_stopped_it(
    run, words, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    update = TrainingProgress.update

    def press(self, step, values) -> None:
        update(self, step, values)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "update", press)
    stopped = run(*words)
    assert stopped.code == 130
    assert "Saved at step 2. The same command goes on" in stopped.err
    assert "Next:" not in stopped.err
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ended = run(*words)
    assert ended.code == 0
    assert "goes on from step 2" in ended.err
    assert hashes(tmp_path / "runs" / "tiny") == hashes(trained)


def test_a_finished_run_is_not_trained_again(run, words, own_run: Path) -> None:
    ended = run(*words)
    assert ended.code == 0
    assert "trained to its end already" in ended.err
    assert "parameters" not in ended.err


def test_fresh_trains_anew(run, words, own_run: Path) -> None:
    before = (own_run / "model.safetensors").stat().st_mtime_ns
    assert run(*words, "--fresh").code == 0
    assert (own_run / "model.safetensors").stat().st_mtime_ns > before


def test_a_dry_run_shows_the_plan_and_writes_nothing(run, words, tmp_path: Path) -> None:
    plan = run(*words, "--dry-run", "--json").json
    assert plan["steps"] == 5
    assert plan["parameters"] == 27 * 16 + 4 * 16 * 16 + 3 * 16 * 40 + 3 * 16
    assert plan["model"]["num_layers"] == 1
    assert plan["memory_bytes"] > 0
    assert plan["expected_seconds"] > 0
    assert not (tmp_path / "runs").exists()
    assert "3.4k parameters" in run(*words, "--dry-run").out


def test_underscores_are_taken_for_dashes(run, words) -> None:
    plan = run(*words, "--dry-run", "--json", "--mlp_width", "24", "--norm_eps=0.5").json
    assert plan["model"]["mlp_width"] == 24
    assert plan["model"]["norm_eps"] == 0.5


def test_dtype_is_taken_for_precision(run, words, tmp_path: Path) -> None:
    assert run(*words, "--dtype", "bfloat16", "--quiet").code == 0
    assert "precision: bfloat16" in (tmp_path / "runs" / "tiny" / "run.yaml").read_text()


def test_another_configuration_is_an_error_that_shows_the_difference(
    run, words, own_run: Path
) -> None:
    ended = run(*words, "--lr", "0.5", "--quiet")
    assert ended.code == 2
    assert "optimizer.lr: 0.001 -> 0.5" in ended.err
    assert "--fresh" in ended.err
    assert len(ended.err.splitlines()) == 2


def test_the_log_file_holds_what_was_warned_of(run, words, own_run: Path, tmp_path: Path) -> None:
    state = own_run / "checkpoint-5" / "trainer.json"
    state.write_text(state.read_text() + " ")  # the checkpoint is damaged now
    log = tmp_path / "logs" / "train.log"
    ended = run(*words, "--log-file", log)
    assert "checkpoint-5" in ended.err
    assert "WARNING" in log.read_text()


class Terminal:
    """A pseudo-terminal in the place of the three standard streams, with someone typing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
        self._master, slave = pty.openpty()
        os.write(self._master, typed.encode())
        self._ends = [os.fdopen(os.dup(slave), mode) for mode in ("r", "w", "w")]
        os.close(slave)
        for name, stream in zip(("stdin", "stdout", "stderr"), self._ends, strict=True):
            monkeypatch.setattr(sys, name, stream)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def screen(self) -> str:
        """All that was shown, once the program has ended."""
        for stream in self._ends:
            stream.close()
        self._reader.join(10)
        os.close(self._master)
        return b"".join(self._parts).decode()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 4096)
            except OSError:  # the last writer has gone
                return
            self._parts.append(part)


@pytest.mark.parametrize(("typed", "code"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_on_a_terminal_it_asks_before_a_run_is_replaced(
    run, words, own_run: Path, monkeypatch, typed: str, code: int
) -> None:
    from stepwell.cli import main

    before = hashes(own_run)
    monkeypatch.setenv("TERM", "xterm-256color")
    with monkeypatch.context() as patch:
        terminal = Terminal(patch, typed)
        ended = main([*words, "--lr", "0.5"])
        screen = terminal.screen()
    assert ended == code
    assert "optimizer.lr: 0.001 -> 0.5" in screen
    assert "[y/N]" in screen
    assert (hashes(own_run) == before) == (code == 1)
    assert ("Nothing was changed" in screen) == (code == 1)
    assert "Traceback" not in screen
