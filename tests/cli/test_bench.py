"""`stepwell bench` as it is typed: the table, the JSON, the page, and peers that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.cli import bench as bench_module
from stepwell.errors import PeerError
from stepwell.evals.bench import install, sizes
from stepwell.evals.bench.sizes import llama_shape, make_model
from stepwell.text.tokenizer import Tokenizer

BRIEF = (
    *("--repetitions", "1", "--prompt-tokens", "4", "--new-tokens", "24", "--pause-s", "0"),
    *("--prefill-tokens", "16", "--requests", "2"),
)
SMALL = llama_shape(16, 32, 1, (1, 1), 32)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("STEPWELL_PEERS", raising=False)
    make_model(SMALL, tmp_path / "small")
    return tmp_path / "small"


def test_a_missing_peer_is_a_row_and_the_exit_code_is_0(run, model: Path) -> None:
    words = ("--model", model, "--peer", "llama.cpp=/none/python", *BRIEF)
    ended = run("bench", "decode", *words, "--json")
    assert ended.code == 0, ended.err
    rows = ended.json["rows"]
    assert {row["case"] for row in rows} == {
        *("1 row, bf16", "16 rows, bf16", "1 row, int8", "16 rows, int8"),
    }
    assert all("/none/python does not start" in row["problem"] for row in rows)
    assert all(len(row["ours"]) == 1 and row["model"] == "small" for row in rows)


def test_a_page_is_written_where_it_is_asked_for(run, model: Path, tmp_path: Path) -> None:
    ended = run("bench", "prefill", "--model", model, *BRIEF, "--out", tmp_path / "results")
    assert ended.code == 0, ended.err
    [page] = (tmp_path / "results").glob("*.md")
    assert "16 tokens, bf16" in page.read_text()
    assert "16 tokens, bf16" in ended.out
    assert str(page) in ended.err.replace("\n", "")


def test_answers_are_asked_for_with_text_and_drafter(run, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("down the stairs " * 40)
    Tokenizer.character("abcdefghijklmnopqrstuvwxyz ").save(model)
    words = ("--model", model, "--draft", model, "--text", text, "--prompts", "2")
    ended = run("bench", "speculation", "cache", *words, "--answer-tokens", "8", *BRIEF, "--json")
    assert ended.code == 0, ended.err
    rows = ended.json["rows"]
    assert [row["problem"] for row in rows] == [""] * 6
    assert {row["case"]: row["bar"] for row in rows} == {
        **{f"{who}, temperature 0": 1.5 for who in ("lookup", "drafter")},
        **{f"{who}, temperature 0.8": 1.5 for who in ("lookup", "drafter")},
        "all found": None,
        "one look-up": None,
    }
    assert "tokens a step" in rows[0]["note"]


def test_peers_are_found_by_the_environment(run, model: Path, tmp_path, monkeypatch) -> None:
    python = tmp_path / "peers" / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()  # it is there, but is no program
    monkeypatch.setenv("STEPWELL_PEERS", str(tmp_path / "peers"))
    [row] = run("bench", "batch", "--model", model, *BRIEF, "--json").json["rows"]
    assert (row["against"], row["theirs"]) == ("vllm", None)
    assert "Permission denied" in row["problem"]


def test_a_size_is_made_once(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "SIZES", {"14m": SMALL})
    words = ("bench", "prefill", "--model", "14m", "--cache", tmp_path / "made", *BRIEF)
    assert run(*words).code == 0
    first = (tmp_path / "made" / "14m" / "model.safetensors").stat().st_mtime_ns
    assert run(*words).code == 0
    assert (tmp_path / "made" / "14m" / "model.safetensors").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("decod",), "decode"),
        (("--model", "15m"), "14m"),
        (("--peer", "lama.cpp=python"), "llama.cpp"),
        (("--repetitions", "0"), "repetitions"),
        (("--threads", "-1"), "threads"),
        (("--answer-tokens", "1"), "answer_tokens"),
        (("--draft", "15m"), "14m"),
        (("--text", "no/such/file"), "no/such/file"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, monkeypatch, words, said: str) -> None:
    monkeypatch.delenv("STEPWELL_PEERS", raising=False)
    ended = run("bench", *words)
    assert ended.code == 2
    assert said in ended.err


def test_installing_names_what_failed_and_goes_on(run, tmp_path, monkeypatch) -> None:
    def pretend(name: str, folder: Path) -> Path:
        if name == "vllm":
            raise PeerError("pip found no vllm.")
        return folder / name / "bin" / "python"

    monkeypatch.setattr(install, "install_peer", pretend)
    ended = run("bench", "--install-peers", tmp_path, "--json")
    assert ended.code == 1
    assert ended.json["problems"] == {"vllm": "pip found no vllm."}
    assert ended.json["peers"]["llama.cpp"] == str(tmp_path / "llama.cpp" / "bin" / "python")


def test_the_command_line_knows_the_models_without_loading_them() -> None:
    assert set(bench_module.MODELS) == set(sizes.SIZES)
