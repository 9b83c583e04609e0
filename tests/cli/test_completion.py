"""Completion scripts: every command and flag is in them, and the shell takes them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stepwell.cli.app import COMMANDS

SHELLS = ("bash", "zsh", "fish")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_knows_commands_and_flags(run, shell: str) -> None:
    script = run("completion", "show", shell).out
    for command in COMMANDS:
        assert command.name in script
    for flag in ("num-layers", "max-new-tokens", "log-file", "chains", "nodes", "offset"):
        assert flag in script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_it(run, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = run("completion", "show", shell).out
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_bash_completes_a_flag(run, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "show", "bash").out)
    ask = (
        f"source {script}; COMP_WORDS=(stepwell train --num-la); COMP_CWORD=2;"
        ' COMP_LINE="stepwell train --num-la"; COMP_POINT=${#COMP_LINE};'
        ' $(complete -p stepwell | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["--num-layers"], done.stderr


def test_installing_writes_the_script_and_names_it(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    ended = run("completion", "install", "--json")
    assert ended.code == 0
    script = Path(ended.json["script"])
    assert script.is_relative_to(tmp_path)
    assert "stepwell" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_a_shell_that_is_not_known_must_be_named(run, monkeypatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    ended = run("completion", "show")
    assert ended.code == 2
    assert "bash, zsh, fish" in ended.err
    monkeypatch.delenv("SHELL")
    assert run("completion", "show").code == 2
    assert os.environ.get("SHELL") is None
