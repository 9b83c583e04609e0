"""The two consoles: results on one, all else on the other."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from rich.table import Table

from stepwell.cli.console import OutputFlags, as_json


def test_results_and_notes_go_different_ways(capsys) -> None:
    with OutputFlags().open() as output:
        output.note("a [note] :smile:")
        output.result({"a": 1}, "a [result] :smile:")
        output.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == "a [result] :smile:\n"
    assert captured.err == "a [note] :smile:\nwarning: careful\n"


def test_json_prints_the_value_and_quiet_no_notes(capsys) -> None:
    with OutputFlags(json=True, quiet=True).open() as output:
        output.note("a note")
        output.result({"a": [1.5, float("nan"), Path("b")]}, Table())
        output.warn("careful")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": [1.5, None, "b"]}
    assert captured.err == "warning: careful\n"


def test_text_is_neither_wrapped_nor_cut(capsys) -> None:
    text = "word " * 200 + "\nß 日本 \x1b"
    with OutputFlags().open() as output:
        output.result(None, text)
    assert capsys.readouterr().out == text + "\n"


def test_warnings_of_the_library_are_shown_and_all_records_logged(capsys, tmp_path) -> None:
    logger = logging.getLogger("stepwell.somewhere")
    before = logging.getLogger("stepwell").handlers[:]
    log = tmp_path / "a" / "log.txt"
    with OutputFlags(log_file=log).open():
        logger.warning("step %d failed", 3)
        logger.info("a detail")
    logger.info("afterwards")
    assert capsys.readouterr().err == "warning: step 3 failed\n"
    lines = log.read_text().splitlines()
    assert [line.partition(" ")[2].partition(" ")[2] for line in lines] == [
        "WARNING stepwell.somewhere: step 3 failed",
        "INFO stepwell.somewhere: a detail",
    ]
    assert logging.getLogger("stepwell").handlers == before


def test_json_of_numbers_that_are_none() -> None:
    assert json.loads(as_json([float("inf"), {"a": -float("inf")}, (1,)])) == [
        None,
        {"a": None},
        [1],
    ]


def test_the_question_takes_no_for_silence(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    with OutputFlags().open() as output:
        for typed, answer in (("", False), ("\n", False), ("no\n", False), ("Y\n", True)):
            monkeypatch.setattr("sys.stdin", io.StringIO(typed))
            assert output.confirm("Really?") is answer
        assert output.interactive is False
    assert capsys.readouterr().err == "Really? [y/N] " * 4
