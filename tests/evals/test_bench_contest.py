"""The contest on a model of a moment: real engine, real processes, every question."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from stepwell.evals.bench import alone
from stepwell.evals.bench.alone import streamed_bytes
from stepwell.evals.bench.contest import Bench
from stepwell.evals.bench.figures import Bar, Figures, Row
from stepwell.evals.bench.install import needed
from stepwell.evals.bench.ours import Ours, timed
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.results import Setting, cells, plain, ratio_chart, slug, write_page
from stepwell.evals.bench.sizes import llama_shape, make_model
from stepwell.model.quantize import quantize_weights
from stepwell.model.weights import load_model

SHAPE = llama_shape(32, 64, 2, (2, 1), 96).resized(context_length=64)
PLAN = BenchPlan(
    repetitions=2,
    prompt_tokens=8,
    new_tokens=24,
    prefill_tokens=40,
    requests=5,
    read_mib=8,
    pause_s=0.0,
)
SETTING = Setting(
    day=date(2026, 3, 9),
    machine="An EPYC (9R14), 2 CPUs",
    threads=2,
    repetitions=2,
    command="stepwell bench",
    versions={"stepwell": "1", "vllm": "2"},
)
ANSWERS = """#!{python}
import json, sys
say = lambda plain: print(json.dumps(plain), flush=True)
assert sys.argv[-1] == "llama_cpp", sys.argv
setup = json.loads(input())
assert setup["vocab_size"] == 96, setup
say({{"version": "b7"}})
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "load":
        sys.exit("no load today")
    say({{"prefill_s": 1.0, "decode_s": 2.0}})
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(SHAPE, directory)
    return Subject("tiny", directory)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A "Python" that answers as llama.cpp's would, whatever it is given."""
    path = tmp_path / "python"
    path.write_text(ANSWERS.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_questions_are_asked_of_all_and_a_failing_peer_is_a_row(
    tiny, python, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(alone, "measured_apart", lambda *_: "not now")
    bench = Bench(
        *(PLAN, ("decode", "prefill", "batch", "load")),
        {"llama.cpp": python, "vllm": tmp_path / "none"},
    )
    found = {(row.question, row.case, row.against): row for row in bench.rows(tiny)}
    assert bench.versions == {"llama.cpp": "b7"}
    decode = found["decode", "16 rows, bf16", "llama.cpp"]
    assert decode.other == Figures((16 * 23 / 2.0,) * 2)
    assert decode.ratio is not None
    assert found["prefill", "40 tokens, bf16", "llama.cpp"].other == Figures((40.0, 40.0))
    assert found["decode", "1 row, int8", "llama.cpp"].ratio is not None
    assert "does not start" in found["decode", "1 row, bf16", "vllm"].problem
    assert found["batch", "bf16", "vllm"].ours is not None
    load = found["load", "first token", "llama.cpp"]
    assert load.ours is not None
    assert load.problem == "llama.cpp ended: no load today."
    assert ("decode", "1 row, int8", "vllm") not in found, "it has no 8-bit weights"


def test_questions_of_our_own_need_no_peer(tiny) -> None:
    bench = Bench(PLAN, ("bandwidth", "verify"), {})
    rows = list(bench.rows(tiny))
    assert [(row.question, row.case, row.against) for row in rows] == [
        ("bandwidth", "bf16", "read-only pass"),
        ("verify", "4 tokens", "1 token"),
        ("verify", "8 tokens", "1 token"),
        ("bandwidth", "int8", "read-only pass"),
    ]
    assert all(row.ratio is not None and not row.problem for row in rows)


def test_without_peers_our_figures_stand_alone(tiny) -> None:
    rows = list(Bench(PLAN, ("decode",), {}).rows(tiny))
    assert len(rows) == 4
    assert all(row.ours is not None and row.against == "" for row in rows)


def test_what_does_not_fit_the_context_is_a_row_that_says_so(tiny) -> None:
    rows = list(Bench(PLAN.changed(prefill_tokens=64), ("prefill",), {}).rows(tiny))
    assert [row.problem for row in rows] == ["65 tokens do not fit the context of 64."] * 2
    assert all(row.ours is None for row in rows)


def test_answers_have_as_many_tokens_as_were_asked_for(tiny) -> None:
    ours = Ours(tiny.directory, "bf16")
    steps = 0
    step = ours._engine.step

    def counted():
        nonlocal steps
        steps += 1
        return step()

    ours._engine.step = counted  # type: ignore[method-assign]
    timed(ours._engine, [[5, 6, 7]] * 2, [9, 4])
    assert steps == 9
    before = steps
    timed(ours._engine, [[5, 6, 7]] * 2, [9, 4])
    assert steps == 2 * before, "nothing is remembered from the first time"


def test_the_weights_that_a_step_streams(tiny) -> None:
    model = load_model(tiny.directory)
    assert streamed_bytes(model) == 2 * SHAPE.num_parameters
    embedding = model.embed.weight.nbytes
    quantized = quantize_weights(load_model(tiny.directory))
    everything = sum(value.nbytes for value in quantized.parameters())
    assert streamed_bytes(quantized) == everything - embedding, "it is only looked up"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_peak_memory_is_at_least_the_weights(tmp_path: Path) -> None:
    make_model(llama_shape(256, 1024, 6, (4, 4), 8192), tmp_path / "model")
    found = alone.measured_apart(Subject("model", tmp_path / "model"), "bf16")
    assert isinstance(found, dict), found
    assert found["weights"] > 10 * 2**20
    assert 0.9 < found["peak"] / found["weights"] < 2.5


def test_a_peak_that_cannot_be_measured_says_why(tiny, tmp_path: Path, monkeypatch) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho It is dark. >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    [row] = alone.memory(tiny, Ours(tiny.directory, "bf16"), PLAN)
    assert (row.problem, row.ratio) == ("It is dark.", None)


ROW = Row(
    *("decode", "1 row, bf16", "14m", "tokens/s"),
    ours=Figures((1038.0, 1030.0, 1050.0)),
    against="llama.cpp",
    other=Figures((519.0, 515.0, 525.0)),
    bar=Bar(1.7),
)


def test_the_page_holds_machine_versions_spread_and_bars(tmp_path: Path) -> None:
    broken = replace(ROW, against="vllm", other=None, problem="vllm | ended.")
    step = replace(ROW, question="train", case="8 x 256, eager", against="transformers")
    path = write_page([ROW, broken, step], SETTING, tmp_path / "results")
    assert path.name == "2026-03-an-epyc-9r14-2-cpus.md"
    page = path.read_text()
    assert "stepwell 1, vllm 2" in page
    assert (
        "| 1,038 tokens/s ± 2% | llama.cpp | 519 tokens/s ± 2% | 2.00 [2.00, 2.00] | ≥ 1.7 ✓ |"
    ) in page
    assert "| vllm | vllm \\| ended. |  | ≥ 1.7 |" in page
    for question in ("decode", "train"):
        picture = path.with_name(f"{path.stem}-{question}.png")
        assert f"]({picture.name})" in page
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_page_without_peers_has_no_picture(tmp_path: Path) -> None:
    alone_row = replace(ROW, against="", other=None)
    path = write_page([alone_row], SETTING, tmp_path)
    assert "![" not in path.read_text()
    assert not list(tmp_path.glob("*.png"))


def test_only_what_was_measured_beside_a_peer_is_drawn() -> None:
    idle = replace(ROW, question="hooks", case="idle", against="no hooks")
    assert ratio_chart([idle], SETTING, "hooks") is None
    zeroed = replace(ROW, question="hooks", case="head zeroed", against="nnsight")
    chart = ratio_chart([idle, zeroed], SETTING, "hooks")
    assert chart is not None
    assert chart.categories == ["14m head zeroed"]


def test_a_missed_bar_is_marked() -> None:
    assert cells(replace(ROW, bar=Bar(2.5)))[-2:] == ("2.00", "≥ 2.5 ✗")
    at_most = replace(ROW, unit="s", bar=Bar(1.0, "at most", of="ours"))
    assert cells(at_most)[-1] == "≤ 1 s ✗"


def test_json_has_every_turn() -> None:
    [row] = plain([ROW], SETTING)["rows"]
    assert row["ours"] == (1038.0, 1030.0, 1050.0)
    assert (row["ratio"], row["bar"], row["meets_bar"]) == (2.0, 1.7, True)


def test_points_of_several_peers_do_not_lie_on_each_other() -> None:
    chart = ratio_chart([ROW, replace(ROW, against="vllm")], SETTING)
    assert chart is not None
    first, second, _level = chart.series
    assert list(first.x) != list(second.x)  # type: ignore[arg-type]


def test_a_file_name_is_made_of_letters_and_digits() -> None:
    assert slug("AMD EPYC 9R14 (x2)") == "amd-epyc-9r14-x2"


def test_vllm_needs_neither_pictures_nor_another_build_of_them() -> None:
    lines = [
        *("regex", "torchvision; platform_machine != 'riscv64'", "setuptools==78.1.1"),
        *("torch==2.13.0+cpu", "ray>=2 ; extra == 'ray'", "fastapi[standard]<1"),
    ]
    assert needed(lines) == ["regex", "torch==2.13.0+cpu", "fastapi[standard]<1"]
