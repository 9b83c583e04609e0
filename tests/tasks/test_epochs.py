"""Where a run stands in its data: an epoch is over when every example has been met once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwell.tasks import Arithmetic, Documents, Mixture, Pairs, Task


def pairs(path: Path) -> Pairs:
    lines = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(60)]
    path.write_text("\n".join(lines))
    return Pairs(path=path, tokens="byte")


def documents(path: Path) -> Documents:
    texts = (str(3 ** (400 + n)) for n in range(60))
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return Documents(path=path, tokens="byte", window=16)


def met(task: Task, count: int) -> set[tuple[int, ...]]:
    return {tuple(task.encode(task.example_in("train", i)).ids) for i in range(count)}


@pytest.mark.parametrize("kind", [pairs, documents])
def test_after_one_epoch_all_has_been_met(tmp_path: Path, kind) -> None:
    task = kind(tmp_path / "rows.jsonl")
    size = round(1 / task.epochs(1)["epoch"])
    assert task.epochs(size) == {"epoch": 1.0}
    assert met(task, size) == met(task, 3 * size)
    assert met(task, size - 1) != met(task, size)


def test_a_mixture_counts_each_part(tmp_path: Path) -> None:
    parts = [documents(tmp_path / "a.jsonl"), pairs(tmp_path / "b.jsonl"), Arithmetic()]
    weights = (1, 3, 0)
    mixture = Mixture(
        parts=[{"task": part, "weight": w} for part, w in zip(parts, weights, strict=True) if w]
    )
    for count in (0, 1, 700, 1000, 2345):
        taken = [mixture.place("train", i)[0] for i in range(count)]
        assert mixture.epochs(count) == {
            "epoch/documents": parts[0].epochs(taken.count(0))["epoch"],
            "epoch/pairs": parts[1].epochs(taken.count(1))["epoch"],
        }


def test_what_is_drawn_without_end_has_no_epochs() -> None:
    assert Arithmetic().epochs(10**6) == {}
