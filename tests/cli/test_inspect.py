"""Looking inside by command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.cli.inspect import parse_choice
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
