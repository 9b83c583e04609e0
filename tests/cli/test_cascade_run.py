"""`stepwell cascade run`: what it prints of answers and traces, and what it says of faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.openai_server import OpenAIServer
from support.processes import free_port
from support.question_ladders import check_refused, prompts, question_ladder

from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.stages.local import LocalStage
from stepwell.cli import main
from stepwell.generate.text import TextGenerator

Run = Callable[..., Any]
DEEP = ("--lambda", 1000)
ASKED = prompts(100)[-6:]
SERVED = 1e5
"""Parameters that the server's model is said to have."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ladder of two local models that was fitted; to be read only."""
    folder = tmp_path_factory.mktemp("fitted")
    file = question_ladder(folder, count=80, costs="price", stages=priced())
    assert main(["cascade", "fit", str(file), "--quiet"]) == 0
    return folder


def priced() -> list[dict[str, Any]]:
    """Stages whose prices, not this machine's mood, say what they cost."""
    prices = {"small": 1.0, "large": 10.0}
    return [
        {"name": name, "model": name, "price": {"completion": price}}
        for name, price in prices.items()
    ]


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A copy of that ladder's file, to be changed."""
    return shutil.copytree(made, tmp_path / "ladder") / "ladder.yaml"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file of a ladder whose large stage is a server, and that server."""
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    large = {"server": f"http://127.0.0.1:{port}", "parameters": SERVED}
    file = question_ladder(folder, count=48, large=large, serving={"max_rows": 4})
    with OpenAIServer(TextGenerator.load(folder / "large"), port=port) as server:
        assert main(["cascade", "fit", str(file), "--quiet"]) == 0
        yield file, server


def change(file: Path, **fields: Any) -> Path:
    """The ladder file with other fields."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **fields}))
    return file


def test_answers_are_those_of_the_cascade(made: Path, run: Run) -> None:
    file = made / "ladder.yaml"
    for lam in (0.0, 2.0, 1000.0):
        ended = run("cascade", "run", file, *ASKED, "--lambda", lam, "--json")
        assert (ended.code, ended.err) == (0, "")
        expected = [answer.plain() for answer in Cascade.load(file).generate_batch(ASKED, lam=lam)]
        for row, prompt, answer in zip(ended.json, ASKED, expected, strict=True):
            assert row["prompt"] == prompt
            for found, wanted in zip(row["trace"], answer["trace"], strict=True):
                assert {**found, "seconds": 0, "beliefs": 0} == {
                    **wanted, "seconds": 0, "beliefs": 0,
                }  # fmt: skip
            for name in ("text", "stage", "cost", "p_good", "stopped", "finish_reason"):
                assert row[name] == pytest.approx(answer[name])


def test_a_dearer_failure_goes_deeper(made: Path, run: Run) -> None:
    depths = []
    for lam in (0, 1000):
        rows = run("cascade", "run", made / "ladder.yaml", *ASKED, "--lambda", lam, "--json").json
        depths.append([row["trace"][-1]["stage"] for row in rows])
    assert set(depths[0]) == {"small"}
    assert set(depths[1]) == {"large"}


def test_a_trace_tells_each_stages_part(made: Path, run: Run) -> None:
    file = made / "ladder.yaml"
    plain = run("cascade", "run", file, *ASKED, *DEEP)
    traced = run("cascade", "run", file, *ASKED, *DEEP, "--trace")
    rows = run("cascade", "run", file, *ASKED, *DEEP, "--json").json
    heads = [line for line in traced.out.splitlines() if not line.startswith("    ")]
    assert heads == plain.out.splitlines()
    assert [line.startswith(prompt) for line, prompt in zip(heads, ASKED, strict=True)]
    told = [line.strip() for line in traced.out.splitlines() if line.startswith("    ")]
    visits = [visit for row in rows for visit in row["trace"]]
    assert len(told) == len(visits) >= 2 * len(ASKED)
    for line, visit in zip(told, visits, strict=True):
        verified = f"{visit['accepted_tokens']} of {visit['new_tokens']} tokens drafted"
        how = verified if visit["mode"] == "verified" else "anew"
        assert line.startswith(f"{visit['stage']}: {visit['answer']!r}   {how}   cost ")
    assert any("tokens drafted" in line for line in told)


def test_what_the_ladder_file_says_of_sampling_can_be_overruled(made: Path, run: Run) -> None:
    words = ("cascade", "run", made / "ladder.yaml", ASKED[0], *DEEP, "--json")
    [short] = run(*words, "--max-new-tokens", 2).json
    [long] = run(*words).json
    assert long["text"].startswith(short["text"])
    assert [visit["new_tokens"] for visit in short["trace"]] == [2, 2]


def test_a_stage_that_fails_is_said_and_the_others_answer(
    file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the fault, nothing is said."""
    words = ("cascade", "run", file, *ASKED, *DEEP, "--trace")
    assert run(*words).err == ""

    def broken(self: LocalStage, *args: Any, **asked: Any) -> Any:
        if self.name == "large":
            raise RuntimeError("out of order\nsince yesterday")
        return answered(self, *args, **asked)

    answered = LocalStage._reply
    monkeypatch.setattr(LocalStage, "_reply", broken)
    ended = run(*words)
    assert ended.code == 0
    [line] = ended.err.splitlines()
    assert line.startswith(f"warning: stage large failed at {len(ASKED)} of {len(ASKED)} prompts: ")
    assert line.endswith("out of order since yesterday")
    told = [line for line in ended.out.splitlines() if "large: no answer (" in line]
    assert len(told) == len(ASKED)
    assert any("no answer (error): out of order since yesterday" in line for line in told)
    rows = run(*words, "--json").json
    assert {row["stage"] for row in rows} == {"small"}
    assert all(row["text"] for row in rows if row["finish_reason"] == "length")


def test_where_no_stage_answers_the_exit_code_says_so(
    file: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(LocalStage, "_reply", broken)
    ended = run("cascade", "run", file, *ASKED[:2])
    assert ended.code == 1
    assert ended.err.endswith("warning: 2 of 2 prompts got no answer.\n")
    assert ended.out.count("(no answer)") == 2
    target = tmp_path / "answers.jsonl"
    ended = run("cascade", "run", file, *ASKED[:2], "--output", target, "--json")
    assert ended.code == 1
    assert [json.loads(line)["stopped"] for line in target.read_text().splitlines()] == [
        "failed", "failed",
    ]  # fmt: skip


def test_a_prompt_that_no_stage_can_answer_is_named_with_its_line(
    made: Path, run: Run, tmp_path: Path
) -> None:
    file, path = made / "ladder.yaml", tmp_path / "prompts.jsonl"
    long = "the cat " * 200
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("the cat", long)))
    ended = run("cascade", "run", file, "--input", path)
    assert ended.code == 2
    assert f"{path}, line 2: the prompt has " in ended.err
    assert ended.out == ""
    assert "prompt 'the cat the cat" in run("cascade", "run", file, long).err


def test_a_server_that_fails_is_gone_around(served: tuple[Path, OpenAIServer], run: Run) -> None:
    file, server = served
    words = ("cascade", "run", file, *ASKED, *DEEP, "--json")
    sound = run(*words)
    assert (sound.code, "warning" in sound.err) == (0, False)
    assert {row["trace"][-1]["stage"] for row in sound.json} == {"large"}
    assert {row["trace"][-1]["mode"] for row in sound.json} <= {"verified", "anew"}
    server.fault = lambda prompt: "500"
    ended = run(*words)
    server.fault = lambda prompt: None
    assert ended.code == 0
    assert f"warning: stage large failed at {len(ASKED)} of {len(ASKED)} prompts: " in ended.err
    assert "The engine is dead" in ended.err
    assert {row["stage"] for row in ended.json} == {"small"}


def test_a_deadline_is_kept(served: tuple[Path, OpenAIServer], run: Run) -> None:
    file, server = served
    server.fault = lambda prompt: "hang"
    ended = run("cascade", "run", file, *ASKED, *DEEP, "--deadline-s", 1, "--json")
    server.fault = lambda prompt: None
    assert ended.code == 0
    assert {row["stage"] for row in ended.json} == {"small"}
    assert {visit["fault"] for row in ended.json for visit in row["trace"][1:]} == {"late"}
    assert "warning: stage large failed" in ended.err


REFUSED: dict[str, tuple[Callable[[Path], Any], int, str, str]] = {
    "a ladder that was never fitted": (
        lambda file: shutil.rmtree(file.parent / "ladder.fitted"), 1,
        "holds no fitted stopping rule", "`stepwell cascade fit",
    ),
    "a ladder that is not there": (lambda file: file.unlink(), 2, "ladder.yaml", ""),
    "a certificate that is not there": (
        lambda file: change(file, policy={"lambda": {"certificate": {"epsilon": 0.3}}}), 1,
        "was not certified at epsilon 0.3 and delta 0.05", "fit the ladder again",
    ),
    "a budget below the cheapest rule": (
        lambda file: change(file, policy={"lambda": {"budget": 1e-6}}), 1, "the budget is 1e-06",
        "raise the budget",
    ),
    "rows at which nothing was measured": (
        lambda file: change(file, costs="measured", serving={"max_rows": 7}), 1,
        "Costs were measured at batch sizes 16, 1, not 7", "`stepwell cascade calibrate`",
    ),
    "a model that is not there": (
        lambda file: shutil.rmtree(file.parent / "small"), 1, "Stage 'small' has no model in",
        "correct `model:`",
    ),
    "other weights": (
        lambda file: (file.parent / "large").rename(file.parent / "x")
        and shutil.copytree(file.parent / "small", file.parent / "large"), 1,
        "Two stages of the ladder have the same weights", "a model of its own",
    ),
    "a server that does not answer": (
        lambda file: change(file, stages=[
            {"name": "small", "model": "small"},
            {"name": "large", "server": f"http://127.0.0.1:{free_port()}"},
        ], costs="measured"), 1, "cannot be reached", "see whether the server runs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_run_is_said_with_a_fix(kind: str, file: Path, run: Run) -> None:
    spoil, code, said, fix = REFUSED[kind]
    spoil(file)
    check_refused(run("cascade", "run", file, "the cat"), code, said, fix)
