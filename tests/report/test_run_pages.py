"""The pages of runs and sweeps in a browser: they ask for nothing, and everything is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.model.config import ModelConfig
from stepwell.tasks.facts import Facts
from stepwell.train.compare import comparison_page
from stepwell.train.config import TrainerConfig
from stepwell.train.history import History
from stepwell.train.sweep.run import sweep


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A sweep of two tiny runs: its page, that of a run, and one of both runs side by side."""
    config = TrainerConfig(
        model=ModelConfig(width=16, num_layers=1, num_heads=2, context_length=8),
        task=Facts(facts=16),
        steps=20,
        batch_size=8,
        evaluate_every=5,
        evaluation_batches=1,
        log_every=1,
        run_name="sweep",
        runs=tmp_path_factory.mktemp("runs"),
        threads=1,
        device="cpu",
    )
    result = sweep(config, grid={"num_heads": [1, 2], "seed": [0]})
    runs = [result.directory / trial.name for trial in result.trials]
    compared = result.directory / "compare.html"
    comparison_page([History.read(run) for run in runs]).write(compared)
    return {
        "run": runs[0] / "report.html",
        "sweep": result.directory / "sweep.html",
        "comparison": compared,
    }


DRAWN = {"run": 7, "sweep": 1, "comparison": 1}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", list(DRAWN))
def test_a_page_asks_for_nothing_and_draws_everything(browser, pages, name, dark):
    browser.open(pages[name], dark=dark)
    assert browser.requests() == [pages[name].resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('figure.chart').length") >= DRAWN[name]
    overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    browser.open(pages[name], width=380, dark=dark)
    assert not browser.run(overflow), "it fits a phone"
