"""Looking inside by command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.cli.numbers import parse_choice
from stepwell.errors import UsageError
from stepwell.generate.text import TextGenerator

PROMPT = "abcd>"


def test_the_next_tokens_are_those_of_the_models_logits(run, trained: Path) -> None:
    shown = run("inspect", trained, PROMPT, "--top", 5, "--json").json
    generator = TextGenerator.load(trained, device="cpu")
    import torch

    with torch.no_grad():
        logits = generator.model(torch.tensor([generator.tokenizer.encode(PROMPT)]))[0, -1]
    best = logits.softmax(-1).sort(descending=True)
    assert [row["id"] for row in shown["next"]] == best.indices[:5].tolist()
    assert [row["probability"] for row in shown["next"]] == pytest.approx(best.values[:5].tolist())
    assert shown["tokens"] == list(PROMPT)
    assert shown["out"] is None


def test_more_tokens_than_there_are_is_all_of_them(run, trained: Path) -> None:
    shown = run("inspect", trained, PROMPT, "--top", 500, "--json").json["next"]
    assert sum(row["probability"] for row in shown) == pytest.approx(1)


@pytest.mark.parametrize("name", ["maps.html", "maps.png"])
def test_the_maps_are_drawn_in_the_form_that_the_name_asks_for(
    run, trained: Path, tmp_path: Path, name: str
) -> None:
    ended = run("inspect", trained, PROMPT, "--out", tmp_path / name, "--layers", 0, "--heads", 0)
    assert ended.code == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<!DOCTYPE html")
    assert str(tmp_path / name) in ended.err
    assert "next token" in ended.out


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("0", [0]), ("2,0", [0, 2]), ("0-2", [0, 1, 2]), ("4,0-1", [0, 1, 4])],
)
def test_choices(text: str, expected: list[int] | None) -> None:
    assert parse_choice(text, "--heads") == expected


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1-", "1--2", "²"])
def test_other_choices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--heads"):
        parse_choice(text, "--heads")


def test_the_lens_says_what_each_layer_would(run, trained: Path) -> None:
    shown = run("inspect", trained, PROMPT, "--lens", "--json").json["lens"]
    [likeliest] = run("inspect", trained, PROMPT, "--top", 1, "--json").json["next"]
    assert [row["place"] for row in shown] == ["embedding", "after layer 0"]
    assert shown[-1]["id"] == likeliest["id"], "the last layer is the model"
    assert shown[-1]["probability"] == pytest.approx(likeliest["probability"], rel=1e-4)
    assert shown[0]["probability"] != pytest.approx(likeliest["probability"], rel=1e-2)
    people = run("inspect", trained, PROMPT, "--lens")
    assert "after layer 0" in people.out
    assert "--out lens.html" in people.err


def test_probabilities_are_those_of_the_tokens_that_came(run, trained: Path) -> None:
    import torch

    shown = run("inspect", trained, PROMPT, "--probabilities", "--json").json["probabilities"]
    generator = TextGenerator.load(trained, device="cpu")
    ids = torch.tensor([generator.tokenizer.encode(PROMPT)])
    with torch.no_grad():
        chances_TV = generator.model(ids)[0].softmax(-1)
    for place, row in enumerate(shown[1:], start=1):
        own = chances_TV[place - 1, ids[0, place]]
        assert row["probability"] == pytest.approx(float(own), rel=1e-4)
        assert row["rank"] == 1 + int((chances_TV[place - 1] > own).sum())
    assert shown[0] == {"token": PROMPT[0], "probability": None, "rank": None}
    assert [row["token"] for row in shown] == list(PROMPT)
    assert run("inspect", trained, PROMPT, "--probabilities").code == 0


@pytest.mark.parametrize(("flag", "title"), [("--lens", "Logit lens"), ("--probabilities", "How")])
@pytest.mark.parametrize("name", ["text.html", "text.png"])
def test_these_are_drawn_too(run, trained, tmp_path, flag, title, name) -> None:
    ended = run("inspect", trained, PROMPT, flag, "--out", tmp_path / name)
    assert ended.code == 0, ended.err
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<!DOCTYPE html")
    assert name.endswith("png") or title.encode() in content
    assert str(tmp_path / name) in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lens", "--probabilities"), "ask for one"),
        (("--lens", "--layers", "0"), "choose attention maps"),
        (("--probabilities", "--heads", "0"), "choose attention maps"),
    ],
)
def test_drawings_that_contradict_are_refused(run, trained, words, said) -> None:
    ended = run("inspect", trained, PROMPT, *words)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize("view", [(), ("--lens",), ("--probabilities",)])
def test_interventions_change_what_is_shown(run, trained, view) -> None:
    silenced = ("--interventions", '[{"zero_heads": {"0": [0]}}]')
    plain, changed = (
        run("inspect", trained, "ab>", "--json", *view, *more).json for more in ((), silenced)
    )
    assert plain["tokens"] == changed["tokens"]
    assert plain != changed
