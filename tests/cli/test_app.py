"""Help, versions, exit codes, and what the command line leaves unimported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepwell import __version__
from stepwell.cli import app as app_module
from stepwell.cli.app import COMMANDS, FAMILIES
from stepwell.cli.words import dashed

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "huggingface_hub", "tensorboardX")
PAGES = [
    [],
    ["--help"],
    ["train", "--help"],
    ["train", "--task", "facts", "--help"],
    ["generate", "--help"],
    ["preview", "--task", "corpus", "-h"],
    *([command.name, "--help"] for command in COMMANDS),
    *([family, "--help"] for family in FAMILIES),
    ["completion", "show", "--help"],
    ["cascade", "run", "--help"],
]
LISTING = f"""
import sys
from stepwell.cli import main
for page in {PAGES!r}:
    assert main(page) == 0, page
    heavy = set({HEAVY!r}) & set(sys.modules)
    assert not heavy, (page, heavy)
if {{control!r}}:
    import torch
    assert set({HEAVY!r}) & set(sys.modules)
assert "stepwell.cli.train" in sys.modules
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, which keeps no help pages."""
    environment = {"XDG_CACHE_HOME": os.devnull, **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


def test_no_help_page_imports_torch() -> None:
    done = python("-c", LISTING.format(control=True))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_list_of_commands_imports_no_command() -> None:
    code = (
        "import sys; from stepwell.cli import main; main(['--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'pydantic', 'yaml')])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


def test_every_command_is_listed_with_a_line_of_its_own(run) -> None:
    page = run("--help").out
    for command in COMMANDS:
        assert f"  {command.name} " in page
        assert command.summary in page


def test_help_of_a_task_shows_its_flags_and_no_other_tasks(run) -> None:
    page = run("train", "--task", "facts", "--help").out
    assert "--offset" in page
    assert "--chains" not in page
    assert "--chains" in run("train", "--task=variable-renaming", "--help").out
    assert "--offset" not in run("train", "--help").out


def test_help_holds_examples_defaults_and_units(run) -> None:
    page = run("train", "--help").out
    assert "\n  stepwell train --task variable-renaming --preset tiny" in page
    assert "[1000]" in page
    assert "--evaluate-every N" in page
    assert "Steps between evaluations" in page


def test_no_line_of_help_is_wider_than_the_terminal(run, monkeypatch) -> None:
    for width in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        page = run("train", "--task", "facts", "--help").out
        flags = [line for line in page.splitlines() if not line.startswith("  stepwell")]
        assert max(map(len, flags)) <= width


def test_version(run) -> None:
    assert run("--version").out.strip() == __version__


def test_python_m_stepwell_is_the_same_program() -> None:
    done = python("-m", "stepwell", "modles")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: There is no command 'modles'.",
        "fix: Did you mean 'models'?",
    ]
    assert done.stdout == ""


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    code = (
        "import sys; from stepwell.cli import main; from stepwell.cli import app;"
        "from stepwell.cli.console import Output;"
        "app.execute = lambda *_: [Output().write('x' * 4096) for _ in range(64)] and 0;"
        "sys.exit(main([]))"
    )
    shell = f'{sys.executable} -c "{code}" | head -c 10'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.stdout == "x" * 10
    assert done.stderr == ""


def test_a_terminal_that_lacks_characters_gets_their_numbers(own_run: Path) -> None:
    own_run.rename(own_run.with_name("größer"))
    words = ("-m", "stepwell", "models", "--runs", str(own_run.parent))
    done = python(*words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\xf6\xdfer" in done.stdout


def test_underscores_in_flags_are_dashes_and_values_stay() -> None:
    assert dashed(["--num_layers", "2", "--stop=a_b", "a_b"]) == [
        *("--num-layers", "2", "--stop=a_b", "a_b"),
    ]
    assert dashed(["--run_name=a_b", "--", "--not_a_flag"]) == [
        *("--run-name=a_b", "--", "--not_a_flag"),
    ]


def test_an_unexpected_error_is_two_lines_and_a_file(run, monkeypatch) -> None:
    def fail(*_words: object) -> int:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(app_module, "execute", fail)
    ended = run("models")
    assert ended.code == 1
    problem, fix = ended.err.splitlines()
    assert "RuntimeError: first line second line" in problem
    path = Path(fix.rpartition(" in ")[2].removesuffix("."))
    assert "Traceback" in path.read_text()
    path.unlink()


def test_ctrl_c_is_130(run, monkeypatch) -> None:
    def interrupt(*_words: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "execute", interrupt)
    assert run("models").code == 130


@pytest.mark.parametrize("words", [["modles", "--json"], ["train", "--json", "--stepz", "3"]])
def test_with_json_an_error_is_json(run, words: list[str]) -> None:
    ended = run(*words)
    error = json.loads(ended.err)["error"]
    assert ended.code == error["exit_code"] == 2
    assert error["type"] == "UsageError"
    assert error["message"]
    assert error["fix"]
    assert ended.out == ""


def test_no_color_means_no_escape_codes(run, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[36m" in run("--help").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[36m" not in run("--help").out
