"""`stepwell profile` as it is typed: the table, the JSON, the page and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.evals.profile.result import PHASES

PROMPT = "abcd>"
BRIEF = ("--max-new-tokens", 4, "--ignore-eos", "--repetitions", 1, "--read-mib", 1)


def test_the_profile_is_of_the_answer_that_generate_gives(run, trained: Path) -> None:
    sampling = ("--temperature", 0.7, "--seed", 5, "--weights", "bf16", "--strict")
    ended = run("profile", trained, PROMPT, *BRIEF, *sampling, "--json")
    assert ended.code == 0, ended.err
    words = ("--max-new-tokens", 4, "--ignore-eos", *sampling, "--json")
    [answer] = run("generate", trained, PROMPT, *words).json["answers"]
    found = ended.json
    assert found["text"] == answer["text"]
    assert (found["prompt_tokens"], found["completion_tokens"]) == (len(PROMPT), 4)
    assert [phase["name"] for phase in found["phases"]] == list(PHASES)
    assert sum(phase["seconds"] for phase in found["phases"]) == pytest.approx(found["seconds"])
    assert found["weights_gb_per_s"] / found["memory_gb_per_s"] == found["memory_share"]
    assert (found["model"], found["prompt"], found["out"]) == (str(trained), PROMPT, None)


def test_a_person_sees_a_table_with_bars(run, trained: Path) -> None:
    ended = run("profile", trained, PROMPT, *BRIEF)
    assert ended.code == 0, ended.err
    assert all(word in ended.out for word in (*PHASES, "first token", "tokens/s", "GB/s", "█"))
    assert "--out" in ended.err


@pytest.mark.parametrize("name", ["profile.html", "profile.png"])
def test_it_is_drawn_in_the_form_that_the_name_asks_for(
    run, trained: Path, tmp_path: Path, name: str
) -> None:
    ended = run("profile", trained, PROMPT, *BRIEF, "--out", tmp_path / name)
    assert ended.code == 0, ended.err
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<!DOCTYPE html")
    assert str(tmp_path / name) in ended.err


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("--max-new-tokens", 0), "ConfigError", "max_new_tokens"),
        (("--repetitions", 0), "ConfigError", "repetitions"),
        (("--read-mib", -1), "ConfigError", "read_mib"),
        (("--temperature", -1), "ConfigError", "temperature"),
        (("--out", "profile.pdf"), "UsageError", ".html or .png"),
        (("-n", 2), "UsageError", "-n"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, trained: Path, words, kind: str, said: str) -> None:
    ended = run("profile", trained, PROMPT, *words)
    assert ended.code == 2
    assert said in ended.err
    assert ended.out == ""
    assert f'"{kind}"' in run("profile", trained, PROMPT, *words, "--json").err


def test_an_empty_prompt_and_an_unknown_model_are_refused(run, trained: Path) -> None:
    ended = run("profile", trained, "", *BRIEF)
    assert (ended.code, "empty" in ended.err) == (2, True)
    ended = run("profile", "no/such/model", PROMPT, *BRIEF)
    assert ended.code == 1
    assert "no/such/model" in ended.err
