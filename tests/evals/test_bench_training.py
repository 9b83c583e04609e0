"""Training steps that are timed: real ones, of us and of transformers."""

from __future__ import annotations

import sys

import pytest
import torch

from stepwell.evals.bench import contest
from stepwell.evals.bench.contest import Bench
from stepwell.evals.bench.figures import Figures
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.sizes import llama_shape, make_model
from stepwell.evals.bench.training import TimedTrainer, next_tokens, product_turn, share
from stepwell.tasks import IGNORE

SHAPE = llama_shape(32, 64, 2, (2, 1), 96).resized(context_length=64)
PLAN = BenchPlan(repetitions=1, train_rows=2, train_tokens=16, pause_s=0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(SHAPE, directory)
    return Subject("tiny", directory)


def test_a_timed_step_trains_every_token() -> None:
    batch = next_tokens(2, 16, 0, 96)
    assert batch.ids.shape == batch.labels.shape == (2, 16)
    assert bool((batch.ids[:, 1:] == batch.labels[:, :-1]).all())
    assert IGNORE not in batch.labels
    trainer = TimedTrainer(SHAPE, compiled=False)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert trainer.step_s(2, 16, 0) > 0
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert trainer.model_config.vocab_size == 96


def test_we_and_transformers_train_in_turns(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "COMPILED", ((False, False),))
    monkeypatch.setattr(contest, "ALONE", ())
    bench = Bench(PLAN, ("train",), {"transformers": sys.executable})  # type: ignore[dict-item]
    [row] = bench.rows(tiny)
    assert (row.case, row.unit, row.problem) == ("2 x 16, eager", "tokens/s", "")
    assert row.ratio is not None


def test_only_what_is_asked_for_is_compiled(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def train(self: Ours, rows: int, length: int, seed: int, *, compiled: bool) -> float:
        asked.append(compiled)
        return 0.5

    monkeypatch.setattr(Ours, "train", train)
    rows = list(Bench(PLAN, ("train",), {}).rows(tiny))
    cases = ["2 x 16, ours compiled", "2 x 16, eager", "2 x 16, compiled", "6 N, compiled"]
    assert [row.case for row in rows] == cases
    assert asked == [True] * 2 + [False] * 2 + [True] * 4
    assert rows[0].ours == Figures((64.0,))
    assert rows[3].ours == Figures((6 * SHAPE.num_parameters * 64.0 / 1e9,))


def test_the_share_is_of_what_products_reach(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ours, "train", lambda *_, **__: 1.0)
    [row] = share(tiny, Ours(tiny.directory, "bf16"), PLAN)
    assert row.other is not None
    reached = product_turn()(0)
    assert reached / 10 < row.other.median < reached * 10
