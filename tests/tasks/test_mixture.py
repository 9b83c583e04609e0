"""Mixtures: exact shares, whole epochs of every part, and one tokenizer."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stepwell as sw
from stepwell.config import read_yaml, write_yaml
from stepwell.errors import ConfigError, DataError
from stepwell.tasks import (
    IGNORE,
    Arithmetic,
    Chats,
    Documents,
    Example,
    Facts,
    Mixture,
    Pairs,
    Task,
    task_from_plain,
)
from stepwell.tasks.mixture import BLOCK, MixedExample, shares

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


def mixture(*weights: float, seed: int = 0) -> Mixture:
    """Sums of one digit, two digits, and so on."""
    parts = [
        {"task": Arithmetic(digits=n), "weight": weight} for n, weight in enumerate(weights, 1)
    ]
    return Mixture(parts=parts, seed=seed)


@given(WEIGHTS, st.integers(1, 2000))
def test_shares_are_whole_and_next_to_exact(weights: list[float], total: int) -> None:
    counts = shares(weights, total)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - weight / sum(weights) * total) < 1 + 1e-9


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_block_has_exact_shares_in_an_order_of_its_own(split: str) -> None:
    task = mixture(0.5, 0.3, 0.2)
    blocks = [[task.place(split, b * BLOCK + i)[0] for i in range(BLOCK)] for b in range(4)]
    assert all(Counter(block) == {0: 500, 1: 300, 2: 200} for block in blocks)
    assert len({tuple(block) for block in blocks}) == 4
    rng = random.Random(0)
    drawn = Counter(rng.choices([0, 1, 2], [5, 3, 2], k=BLOCK))
    assert drawn != Counter(blocks[0]), "drawing each by itself is not exact"
    halves = [Counter(block[: BLOCK // 2])[0] for block in blocks]
    assert all(200 < half < 300 for half in halves), "shuffled, not in turn"


def test_each_part_counts_up_without_gaps() -> None:
    task = mixture(0.617, 0.383)
    met: dict[int, list[int]] = {0: [], 1: []}
    for i in range(3 * BLOCK + 123):
        part, own = task.place("train", i)
        met[part].append(own)
    for part, owns in met.items():
        assert owns == list(range(len(owns))), part


def test_a_place_is_a_pure_function() -> None:
    task, other = mixture(1, 2), mixture(1, 2)
    indices = [5, 2500, 0, 999, 1000, 5]
    backwards = {i: other.place("train", i) for i in sorted(indices, reverse=True)}
    assert [task.place("train", i) for i in indices] == [backwards[i] for i in indices]
    elsewhere = mixture(1, 2, seed=1)
    assert [elsewhere.place("train", i) for i in range(50)] != [
        task.place("train", i) for i in range(50)
    ]


def test_examples_are_those_of_the_parts() -> None:
    task = mixture(1, 1)
    for i in range(40):
        part, own = task.place("train", i)
        expected = task.parts[part].task.example_in("train", own)
        found = task.example_in("train", i)
        assert (found.text, found.targets) == (expected.text, expected.targets)
        assert task.encode(found) == task.parts[part].task.encode(expected)


class Doubts(Arithmetic):
    """Sums of which every answer is right."""

    def grade(self, example: Example, answer_text: str) -> bool:
        return True


def test_a_part_grades_what_it_made() -> None:
    inner = Mixture(parts=[{"task": Doubts()}, {"task": Arithmetic(seed=1)}])
    task = Mixture(parts=[{"task": inner}, {"task": Arithmetic(seed=2), "weight": 0.5}])
    kinds = Counter()
    for i in range(60):
        example = task.example_in("test", i)
        assert isinstance(example, MixedExample)
        made = example.made
        lenient = isinstance(made, MixedExample) and made.part == 0
        assert task.grade(example, "no") == lenient
        kinds[lenient] += 1
    assert kinds[True] > 10 < kinds[False]
    assert not task.grade(Example.completion("1+1=", "2"), "no")


def chats(path: Path) -> Path:
    rows = [{"data": [f"{n}?", f"no {n}"]} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(path: Path) -> Path:
    rows = ({"text": f"Step {n} is wet."} for n in range(400))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parts_take_the_tokenizer_of_the_first(tmp_path: Path) -> None:
    made = Chats(path=chats(tmp_path / "chats.jsonl"), tokens="byte")
    made.tokenizer.save(tmp_path / "model")
    documents = Documents(
        path=texts(tmp_path / "rows.jsonl"), tokenizer_from=tmp_path / "model", window=16
    )
    task = Mixture(parts=[{"task": documents, "weight": 0.7}, {"task": made, "weight": 0.3}])
    assert task.tokenizer.fingerprint == documents.tokenizer.fingerprint
    assert task.tasks[1].tokenizer_from == tmp_path / "model"  # type: ignore[attr-defined]
    assert task.context_length == max(part.context_length for part in task.tasks)
    batch = task.batch("train", range(30))
    assert batch.segments is not None
    for i in range(30):
        part, own = task.place("train", i)
        alone = task.tasks[part].batch("train", [own])
        width = alone.ids.shape[1]
        assert batch.ids[i, :width].equal(alone.ids[0])
        assert batch.labels[i, :width].equal(alone.labels[0])
        expected = [0] * width if alone.segments is None else alone.segments[0].tolist()
        assert batch.segments[i, :width].tolist() == expected


def test_different_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "answer": "b"}\n' * 9)
    documents = Documents(path=texts(tmp_path / "rows.jsonl"), tokens="byte")
    task = Mixture(parts=[{"task": documents}, {"task": Pairs(path=pairs)}])
    with pytest.raises(ConfigError, match=r"pairs \(.*pairs.jsonl\) and documents \(.*rows.jsonl"):
        task.batch("train", [0])
    with pytest.raises(ConfigError, match="facts and arithmetic have different tokenizers"):
        sw.Trainer(
            sw.TrainerConfig(
                model="tiny", task=Mixture(parts=[{"task": "arithmetic"}, {"task": "facts"}])
            )
        )


def test_the_parts_contents_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = texts(tmp_path / "rows.jsonl")

    def found(path: Path) -> str:
        return Mixture(parts=[{"task": Documents(path=path, tokens="byte")}]).fingerprint

    first = found(path)
    moved = path.rename(tmp_path / "moved.jsonl")
    assert found(moved) == first
    moved.write_text(moved.read_text() + '{"text": "more"}\n')
    assert found(moved) != first


def test_a_mixture_is_written_in_a_file(tmp_path: Path) -> None:
    values = {
        "name": "mixture",
        "parts": [
            {"task": {"name": "arithmetic", "digits": 2}, "weight": 0.7},
            {"task": "arithmetic", "weight": 0.3},
        ],
    }
    write_yaml(tmp_path / "run.yaml", {"model": "tiny", "task": values})
    config = sw.TrainerConfig.parse(read_yaml(tmp_path / "run.yaml"))
    assert isinstance(config.task, Mixture)
    assert [part.weight for part in config.task.parts] == [0.7, 0.3]
    assert config.task.parts[0].task == Arithmetic(digits=2)
    again: Task = task_from_plain(json.loads(json.dumps(config.task.plain())))
    assert again == config.task


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "at least 1"),
        ([{"task": "facts", "weight": 0}], "greater than 0"),
        ([{"task": "facts", "wait": 1}], "Did you mean 'weight'"),
        ([{"task": "fact"}], "Did you mean 'facts'"),
        ([{"task": "facts"}, {"task": Facts(seed=1), "weight": 1e-4}], "less than one of 1000"),
    ],
)
def test_parts_that_make_no_sense_are_refused(parts: list[object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Mixture(parts=parts)


def test_a_part_that_has_too_little_says_so(tmp_path: Path) -> None:
    path = texts(tmp_path / "rows.jsonl")
    task = Mixture(parts=[{"task": Documents(path=path, window=10**5)}])
    with pytest.raises(DataError, match="too few for a window"):
        task.batch("train", [0])


@torch.no_grad()
def test_losses_by_part_add_up_to_the_whole(tmp_path: Path) -> None:
    config = sw.TrainerConfig(
        model=sw.ModelConfig(width=16, num_layers=1, num_heads=2),
        task=mixture(0.6, 0.4),
        batch_size=32,
        device="cpu",
    )
    trainer = sw.Trainer(config)
    found = trainer.evaluate()
    assert found.keys() >= {"loss", "loss/arithmetic", "loss/arithmetic-2"}
    losses: dict[str, list[float]] = {"loss": [], "loss/arithmetic": [], "loss/arithmetic-2": []}
    names = ["loss/arithmetic", "loss/arithmetic-2"]
    for i in range(4 * 32):
        part, own = config.task.place("validation", i)
        batch = config.task.parts[part].task.batch("validation", [own])
        logs = trainer.model(batch.ids).log_softmax(-1)[batch.labels != IGNORE]
        labels = batch.labels[batch.labels != IGNORE]
        for name in ("loss", names[part]):
            losses[name] += [-float(log[label]) for log, label in zip(logs, labels, strict=True)]
    for name, values in losses.items():
        assert found[name] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert found["loss/arithmetic"] != pytest.approx(found["loss/arithmetic-2"], rel=1e-3)


def test_a_mixture_trains_packed_and_goes_on(tmp_path: Path) -> None:
    config = sw.TrainerConfig(
        model=sw.ModelConfig(width=16, num_layers=1, num_heads=2),
        task=mixture(0.7, 0.3),
        steps=12,
        batch_size=16,
        pack=True,
        save_every=4,
        evaluate_every=0,
        runs=tmp_path,
        run_name="whole",
        threads=1,
        device="cpu",
    )
    whole = sw.Trainer(config).train()
    halves = config.changed(run_name="halves")
    steps = iter(range(6))
    with pytest.raises(KeyboardInterrupt):
        sw.Trainer(halves).train(stop_requested=lambda: next(steps, None) is None)
    resumed = sw.Trainer(halves).train()
    weights = [(run.directory / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
