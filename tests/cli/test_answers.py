"""Files of prompts: order, ids, what goes on and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwell.cli import answers
from stepwell.cli.answer_file import AnswerFile
from stepwell.generate.text import TextGenerator

PROMPTS = [{"prompt": "abcd>", "id": "first"}, {"prompt": "ef"}, {"prompt": "zzzz>", "id": 3}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)) + "\n\n")
    return path


@pytest.fixture
def asking(trained: Path, source: Path, tmp_path: Path) -> list[object]:
    """The command line that answers the prompts twice each."""
    target = tmp_path / "out" / "answers.jsonl"
    return ["generate", trained, "--input", source, "--output", target, "--seed", 4, "-n", 2]


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The engine gets one prompt at a time; the prompts of each batch, as they come."""
    asked: list[list[str]] = []
    real = TextGenerator.generate_batch

    def counted(self, prompts, **options):
        asked.append(list(prompts))
        return real(self, prompts, **options)

    monkeypatch.setattr(TextGenerator, "generate_batch", counted)
    monkeypatch.setattr(answers, "BATCHES_AHEAD", 0)
    return asked


def test_each_prompt_has_its_answers_in_order(run, asking, trained: Path) -> None:
    ended = run(*asking)
    assert ended.code == 0
    written = lines(asking[5])
    assert [row["prompt"] for row in written] == [row["prompt"] for row in PROMPTS]
    assert [row.get("id") for row in written] == ["first", None, 3]
    generator = TextGenerator.load(trained, device="cpu")
    expected = generator.generate_batch(["abcd>", "ef", "zzzz>"], seed=4, n=2)
    texts = [[answer["text"] for answer in row["answers"]] for row in written]
    assert texts == [[answer.text for answer in each] for each in expected]
    assert not Path(f"{asking[5]}.part").exists()


def test_what_was_stopped_goes_on_and_ends_the_same(run, asking, one_at_a_time) -> None:
    run(*asking)
    whole = asking[5].read_bytes()
    asking[5].unlink()
    real, one_at_a_time[:] = AnswerFile.append, []

    def stop(self, new) -> None:
        real(self, new)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerFile, "append", stop)
        assert run(*asking).code == 130
    assert not asking[5].exists()
    ended = run(*asking)
    assert ended.code == 0
    assert "1 of 3 prompts are answered already" in ended.err
    assert one_at_a_time == [["abcd>"], ["ef"], ["zzzz>"]]
    assert asking[5].read_bytes() == whole


def test_a_torn_line_is_answered_again(run, asking, one_at_a_time) -> None:
    run(*asking)
    whole = asking[5].read_bytes()
    part = Path(f"{asking[5]}.part")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerFile, "finish", lambda *_: None)
        run(*asking, "--fresh")
    content = part.read_bytes()
    for cut in (len(content) - 5, content.find(b"\n") + 10, content.find(b"\n") + 1):
        part.write_bytes(content[:cut])
        assert run(*asking).code == 0
        assert asking[5].read_bytes() == whole
        asking[5].unlink()


def test_a_finished_request_is_not_asked_again(run, asking, one_at_a_time) -> None:
    run(*asking)
    one_at_a_time.clear()
    ended = run(*asking, "--json")
    assert ended.json == {"output": str(asking[5]), "prompts": 3, "failed": 0}
    assert one_at_a_time == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_request_is_refused_until_fresh(run, asking, source: Path, finished) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not finished:
            patch.setattr(AnswerFile, "finish", lambda *_: None)
        run(*asking)
    for change in (["--temperature", 0.5], None):
        if change is None:
            source.write_text('{"prompt": "ef"}\n')
        ended = run(*asking, *(change or []))
        assert ended.code == 2
        assert "--fresh" in ended.err
        if not finished:
            assert ("sampling changed" if change else "prompts changed") in ended.err
    assert run(*asking, "--fresh").code == 0
    assert len(lines(asking[5])) == 1


def test_the_name_of_the_model_does_not_matter(run, asking, trained: Path, tmp_path: Path) -> None:
    run(*asking)
    link = tmp_path / "link"
    link.symlink_to(trained)
    assert "already" in run("generate", link, *asking[2:]).err


def test_a_newer_part_is_refused(run, asking) -> None:
    part = Path(f"{asking[5]}.part")
    part.parent.mkdir()
    part.write_text('{"format_version": 99}\n')
    ended = run(*asking)
    assert ended.code == 1
    assert "format_version 99" in ended.err
    part.write_text("no JSON\n")
    assert run(*asking).code == 1


def test_progress_is_said_in_lines_where_there_is_no_terminal(run, asking) -> None:
    assert "answers.jsonl  6/6" in run(*asking).err
    asking[5].unlink()
    assert run(*asking, "--quiet").err == ""


def test_the_input_is_not_overwritten(run, trained: Path, source: Path) -> None:
    ended = run("generate", trained, "--input", source, "--output", source)
    assert ended.code == 2
    assert lines(source) == PROMPTS
