"""A run's report shows what its files hold, and no more depends on it than a page."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil

import numpy as np
import pytest

from stepwell.config import read_json, write_json
from stepwell.errors import ConfigError, DataError
from stepwell.storage.sealed import sha256
from stepwell.train import loop, report
from stepwell.train.history import History, by_depth, column
from stepwell.train.report import refresh_report, samples_table, write_report
from stepwell.train.report_charts import run_charts, smoothed
from stepwell.train.trainer import Trainer

WEIGHTS = ("model.safetensors", "checkpoint-12/optimizer.safetensors")


@pytest.fixture(scope="module")
def finished(small_in, tmp_path_factory):
    """The folder of a run that was stopped once and went on; to be read only."""
    config = small_in(tmp_path_factory.mktemp("runs"), samples=6, log_every=1)
    asked = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).train(stop_requested=lambda: next(asked) == 5)
    return Trainer(config).train().directory


@pytest.fixture
def own(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def series_of(chart):
    return {series.name: series for series in chart.series}


# -- what is shown ---------------------------------------------------------------------------------


def test_the_charts_hold_the_records_of_the_run(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    charts = run_charts(History.read(finished))
    loss = series_of(charts["loss"])
    for name, split in (("training", "train"), ("validation", "validation")):
        expected = [(r["step"], r["loss"]) for r in lines if r["split"] == split]
        assert list(zip(loss[name].x, loss[name].y, strict=True)) == expected
    best = read_json(finished / "manifest.json")
    assert (loss["best weights"].x, loss["best weights"].y) == (
        [best["step"]],
        [best["metrics"]["loss"]],
    )
    bars = charts["accuracy_by_depth"]
    expected = {
        int(name.rpartition("_")[2]): value
        for name, value in best["metrics"].items()
        if "/depth_" in name
    }
    assert dict(zip(map(int, bars.categories), bars.series[0].y, strict=True)) == expected
    rates = [r["lr"] for r in lines if r["split"] == "train"]
    assert list(charts["lr"].series[0].y) == rates


def test_a_run_that_went_on_says_where(finished):
    history = History.read(finished)
    assert [session["after_step"] for session in history.sessions] == [0, 5]
    mark = series_of(run_charts(history)["loss"])["went on"]
    assert mark.style == "reference"
    assert mark.x[:2] == [5, 5]
    assert "2 sessions" in (finished / "report.html").read_text()


def test_wrong_samples_are_marked_and_only_these(finished):
    samples = History.read(finished).samples()
    rows = samples_table(samples).rows
    assert len(rows) == 6
    for sample, row in zip(samples.rows, rows, strict=True):
        assert (row[-1] == "right") == (sample["expected"] == sample["predicted"])
    assert {row[-1] for row in rows} == {"right", "✗ wrong"}, "both kinds, or nothing is shown"


def test_the_page_holds_configuration_and_environment_and_asks_for_nothing(finished):
    page = (finished / "report.html").read_text()
    assert "default-src &#x27;none&#x27;" in page
    assert "batch_size: 8" in page
    assert read_json(finished / "environment.json")["sessions"][0]["platform"] in page
    assert re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', page) == []


def test_what_users_named_is_shown_as_text(own):
    hostile = "<script>window.owned = 1</script>"
    newest = sorted((own / "samples").iterdir())[-1]
    sample = {"text": hostile, "expected": hostile, "predicted": "&"}
    newest.write_text(json.dumps(sample) + "\n")
    page = write_report(own, pictures=False).read_text()
    assert hostile not in page
    assert "&lt;script&gt;window.owned" in page


# -- runs that are older, younger, or damaged ----------------------------------------------------


def test_a_folder_of_an_older_version_still_draws(own):
    """Records without pace, no samples, no sessions, no weights, fields that nobody knows."""
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    few = [{key: r[key] for key in ("step", "split", "loss")} for r in lines]
    (own / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in few))
    shutil.rmtree(own / "samples")
    (own / "environment.json").unlink()
    (own / "manifest.json").unlink()
    (own / "run.yaml").write_text("steps: 12\ntask: {name: gone}\nforgotten: 1\n")
    history = History.read(own)
    assert set(run_charts(history)) == {"loss"}
    assert "Task gone, 12 of 12 steps." in write_report(own).read_text()


def test_a_run_without_a_record_yet_has_a_page(own):
    (own / "metrics.jsonl").write_text("")
    assert write_report(own).exists()


def test_null_is_a_gap(own):
    record = {"step": 13, "split": "train", "loss": None}
    with (own / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    assert math.isnan(column(History.read(own).training, "loss")[1][-1])
    write_report(own, pictures=False)


def test_a_line_that_is_being_written_does_not_count(own):
    before = History.read(own).records
    with (own / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "split": "tr')
    assert History.read(own).records == before


def test_a_damaged_line_is_named(own):
    with (own / "metrics.jsonl").open("a") as file:
        file.write("{]\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line \d+: not valid JSON"):
        write_report(own)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        write_report(tmp_path)


# -- nothing depends on it -------------------------------------------------------------------------


def test_a_report_that_cannot_be_drawn_ends_no_run(small, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise RuntimeError("no fonts here")

    monkeypatch.setattr(report, "write_report", fail)
    with caplog.at_level(logging.WARNING):
        run = Trainer(small()).train()
    assert run.step > 0
    assert "report.html was not drawn: no fonts here" in caplog.text
    assert not (run.directory / "report.html").exists()


def test_a_run_computes_the_same_without_a_report(small, monkeypatch):
    drawn = Trainer(small(run_name="drawn")).train().directory
    monkeypatch.setattr(loop, "refresh_report", lambda *arguments, **options: None)
    bare = Trainer(small(run_name="bare")).train().directory
    assert not (bare / "report.html").exists()
    assert [sha256(drawn / name) for name in WEIGHTS] == [sha256(bare / name) for name in WEIGHTS]


def test_pictures_are_drawn_at_the_end_only(own, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", ("loss", "accuracy"))
    for path in own.glob("*.png"):
        path.unlink()
    refresh_report(own)
    assert list(own.glob("*.png")) == []
    refresh_report(own, ended=True)
    assert sorted(path.name for path in own.glob("*.png")) == ["accuracy.png", "loss.png"]
    assert (own / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("many", [True, False])
def test_a_run_of_many_records_is_drawn_at_most_once_a_minute(own, monkeypatch, many):
    size = (own / "metrics.jsonl").stat().st_size
    monkeypatch.setattr(report, "MANY_BYTES", size if many else size + 1)
    page = own / "report.html"
    os.utime(page, (0, 0))
    refresh_report(own)
    first = page.stat().st_mtime_ns
    assert first > 0
    page.write_text("kept")
    refresh_report(own)
    assert (page.read_text() == "kept") == many
    refresh_report(own, ended=True)
    assert page.read_text() != "kept"


# -- arithmetic ------------------------------------------------------------------------------------


def test_smoothing_keeps_straight_lines_and_lowers_noise():
    ramp = np.linspace(3.0, 1.0, 200)
    assert np.allclose(smoothed(ramp), ramp)
    noise = ramp + np.random.default_rng(0).normal(size=200) * 0.1
    assert np.std(smoothed(noise) - ramp) < 0.5 * np.std(noise - ramp)


def test_smoothing_passes_over_what_is_not_finite():
    values = [1.0] * 40
    values[20] = math.nan
    assert np.allclose(smoothed(values), 1.0)
    assert math.isnan(smoothed([math.nan] * 20)[10])


def test_depths_are_numbers_in_their_order():
    metrics = {"accuracy/depth_10": 0.1, "accuracy/depth_2": 0.2, "answer_accuracy": 0.3}
    assert list(by_depth(metrics, "accuracy").items()) == [(2, 0.2), (10, 0.1)]


def test_a_session_of_an_older_version_is_shown(own):
    described = read_json(own / "environment.json")
    for session in described["sessions"]:
        del session["after_step"], session["began"]
    described["sessions"][0]["threads"] = 7
    write_json(own / "environment.json", described)
    page = write_report(own, pictures=False).read_text()
    assert "2 sessions" in page
