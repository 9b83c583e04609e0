"""The study of temperature: what is varied, what is not, and that nothing is asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.temperature import study_noting

import stepwell as sw
from stepwell.errors import ConfigError, LogitsError, StepwellError, UsageError
from stepwell.evals import temperature as module
from stepwell.evals.certainty import Certainty
from stepwell.evals.temperature import TemperatureStudy, temperature_study
from stepwell.evals.temperature_rows import Sample, summarise, vote
from stepwell.model.interventions import Replace
from stepwell.tasks.questions import Question, Questions

TASK = sw.tasks.Arithmetic(digits=3)
SHAPE = sw.ModelConfig(
    vocab_size=TASK.tokenizer.vocab_size, context_length=24, width=32, num_layers=1, num_heads=2
)
SMALL = {
    "temperatures": (0, 0.5, 2),
    "samples": 3,
    "input_end": 6,
    "max_new_tokens": 4,
    "resamples": 100,
}


def generator_of(**options) -> sw.TextGenerator:
    model = sw.Transformer(SHAPE)
    model.initialize(3)
    return sw.TextGenerator(model.eval(), TASK.tokenizer, **{"max_rows": 4, **options})


@pytest.fixture(scope="module")
def generator() -> sw.TextGenerator:
    return generator_of()


@pytest.fixture(scope="module")
def study(generator) -> TemperatureStudy:
    return temperature_study(generator, TASK, **SMALL, thresholds=(0.1, 0.3))


def texts(study: TemperatureStudy) -> dict[tuple[str, float, int], str]:
    """Each text by what it answers, so that no order can be mistaken."""
    return {
        (row["prompt"], row["temperature"], row["sample"]): row["text"] for row in study.answers()
    }


# -- what is varied --------------------------------------------------------------------------------


def test_the_answers_are_those_of_the_generator_at_each_temperature(generator, study) -> None:
    found = texts(study)
    for temperature, n in ((0, 1), (0.5, 3), (2, 3)):
        for question in study.questions:
            [answers] = generator.generate_batch(
                [question.prompt], temperature=temperature, n=n, max_new_tokens=4
            )
            for number, answer in enumerate(answers):
                assert found.pop((question.prompt, temperature, number)) == answer.text
    assert found == {}


def test_a_higher_temperature_makes_more_different_answers(generator) -> None:
    wide = temperature_study(
        generator, TASK, temperatures=(0, 0.2, 1, 8), samples=8, input_end=8, max_new_tokens=4
    )
    different = [row.distinct.estimate for row in wide.rows]
    assert different[0] == 1
    assert different == sorted(different)
    assert different[-1] > 6
    unvaried = temperature_study(
        generator, TASK, temperatures=(0.2, 1, 8), samples=8, input_end=8, top_k=1, max_new_tokens=4
    )
    assert {row.distinct.estimate for row in unvaried.rows} == {1}, "what no variation looks like"


def test_at_zero_one_sample_stands_for_all(generator, study) -> None:
    assert [row.samples for row in study.rows] == [1, 3, 3]
    assert study.rows[0].agreement.estimate == 1
    [copies] = generator.generate_batch(
        [study.questions[0].prompt], temperature=0, n=3, max_new_tokens=4
    )
    assert len({copy.token_ids for copy in copies}) == 1


def test_the_same_seed_is_the_same_study_and_another_is_another(generator, study) -> None:
    again = temperature_study(generator, TASK, **SMALL, thresholds=(0.1, 0.3))
    assert texts(again) == texts(study)
    other = texts(temperature_study(generator, TASK, **SMALL, seed=1))
    changed = {key for key, text in texts(study).items() if other[key] != text}
    assert changed
    assert all(temperature for _, temperature, _ in changed), "at 0 there is no chance"


@pytest.mark.parametrize("max_rows", [1, 16])
def test_how_many_are_computed_at_once_moves_nothing(max_rows) -> None:
    known = temperature_study(generator_of(strict=True), TASK, **SMALL)
    other = temperature_study(generator_of(strict=True, max_rows=max_rows), TASK, **SMALL)
    assert texts(other) == texts(known)
    for one, two in zip(known.samples, other.samples, strict=True):
        np.testing.assert_allclose(one.certainty.entropy, two.certainty.entropy, atol=1e-6)


def test_parts_of_a_range_are_the_whole(generator, study) -> None:
    parts: dict[tuple[str, float, int], str] = {}
    for span in ({"input_end": 2}, {"input_start": 2, "input_end": 6}):
        parts |= texts(temperature_study(generator, TASK, **{**SMALL, **span}))
    assert parts == texts(study)


def test_the_order_of_questions_moves_no_answer(generator, study) -> None:
    turned = Questions(study.questions[::-1], {"task": TASK.plain()})
    how = {key: value for key, value in SMALL.items() if key != "input_end"}
    assert texts(temperature_study(generator, turned, **how)) == texts(study)


def test_an_intervention_reaches_the_answers_and_what_is_read_of_them(generator) -> None:
    even = Replace(point="logits", value=0.0)
    study = temperature_study(generator, TASK, **SMALL, interventions=[even], ignore_eos=True)
    for row in study.rows:
        assert row.entropy.estimate == pytest.approx(np.log(SHAPE.vocab_size), abs=1e-6)
    assert len({row["text"] for row in study.answers() if row["temperature"] == 0}) == 1
    assert study.configuration["interventions"][0].keys() == {"replace"}


def test_a_prompt_that_lost_its_beginning_is_read_as_the_model_did() -> None:
    slides = generator_of(long_prompt="slide")
    prompt = "1+2+3+4+5+6+7+8+9+1+2+3+4+5+6="
    items = (Question(prompt, "0", lambda text: False),)
    study = temperature_study(
        slides, Questions(items, {"task": TASK.plain()}), temperatures=(1,), samples=2,
        max_new_tokens=4,
    )  # fmt: skip
    [answers] = slides.generate_batch([prompt], temperature=1, n=2, max_new_tokens=4, logprobs=0)
    assert answers[0].usage.prompt_tokens < len(prompt)
    for sample, answer in zip(study.samples, answers, strict=True):
        np.testing.assert_allclose(sample.certainty.logprob, answer.logprobs, atol=1e-5)


def test_conversations_are_graded_with_their_special_tokens(chat_run: Path) -> None:
    values = yaml.safe_load((chat_run / "run.yaml").read_text())["task"]
    asked = Questions.of_task(sw.tasks.task_from_plain(values), 0, 5, split="train")
    learnt = sw.TextGenerator.load(chat_run, device="cpu")
    how = {"temperatures": (0,), "max_new_tokens": 40}
    assert temperature_study(learnt, asked, **how).rows[0].accuracy.estimate == 1
    without = temperature_study(learnt, replace(asked, spelled=False), **how)
    assert without.rows[0].accuracy.estimate == 0, "thinking and answer cannot be told apart"


# -- the arithmetic --------------------------------------------------------------------------------


def sample(text: str, *, right: bool, top: tuple[float, ...] = (0.95, 0.5), question=0) -> Sample:
    logs = np.log(np.array(top))
    return Sample(question, 1.0, 0, text, text, right, Certainty(-logs, np.array(top), logs))


def test_the_majority_is_what_most_say_and_the_first_of_several() -> None:
    right, wrong = sample("5", right=True), sample("6", right=False)
    for samples, winner, share in (
        ([wrong, right, right], right, 2 / 3),
        ([wrong, right], wrong, 1 / 2),
        ([right, wrong], right, 1 / 2),
        ([wrong, right, sample("7", right=False), right, wrong], wrong, 2 / 5),
    ):
        assert vote(samples) == (winner, share)


def test_a_row_is_the_means_over_prompts_and_over_tokens() -> None:
    prompts = [
        [sample("5", right=True), sample("5", right=True), sample("6", right=False)],
        [sample("1", right=False, top=(0.91,)), *[sample("2", right=True, top=(0.2,) * 3)] * 2],
        [sample(text, right=False, top=(0.99, 0.9)) for text in "abc"],
    ]
    row = summarise(prompts, [1, 2, 1], [0.9, 0.95], resamples=200)
    assert row.accuracy.estimate == pytest.approx((2 / 3 + 2 * 2 / 3 + 0) / 4)
    assert row.majority.estimate == pytest.approx((1 + 2 * 1 + 0) / 4)
    assert row.agreement.estimate == pytest.approx((2 / 3 + 2 * 2 / 3 + 1 / 3) / 4)
    assert row.distinct.estimate == pytest.approx((2 + 2 * 2 + 3) / 4)
    assert row.num_tokens == 6 + 2 * 7 + 6
    assert [each.count for each in row.confident] == [3 + 2 * 1 + 3, 3], "above, not equal to"
    assert row.confident[0].share.estimate == pytest.approx(8 / 26)
    tops = [0.95, 0.5] * 3 + 2 * [0.91, *[0.2] * 6] + [0.99, 0.9] * 3
    assert row.entropy.estimate == pytest.approx(-np.log(tops).mean())
    assert row.logprob.estimate == pytest.approx(np.log(tops).mean())
    assert row.length.estimate == pytest.approx(26 / 12)


def test_a_weight_is_a_prompt_that_comes_more_often() -> None:
    groups = [[sample("5", right=bool(n % 2)), sample("6", right=False)] for n in range(4)]
    weighted = summarise(groups, [1, 3, 1, 2], [0.9], resamples=50)
    often = [group for group, times in zip(groups, [1, 3, 1, 2], strict=True) for _ in range(times)]
    repeated = summarise(often, [1] * 7, [0.9], resamples=50)
    for name in ("accuracy", "majority", "agreement", "entropy", "length"):
        assert getattr(weighted, name).estimate == pytest.approx(getattr(repeated, name).estimate)


def test_an_interval_is_over_prompts_and_not_over_samples() -> None:
    groups = [[sample("5", right=bool(n % 2))] * 50 for n in range(20)]
    interval = summarise(groups, [1] * 20, [0.9]).accuracy
    by_prompts = 1.96 * np.sqrt(0.25 / 20)
    assert interval.high - interval.low == pytest.approx(2 * by_prompts, rel=0.2)
    by_samples = 1.96 * np.sqrt(0.25 / 1000)
    assert interval.high - interval.low > 4 * by_samples, "which would promise too much"


# -- nothing is asked twice ------------------------------------------------------------------------


def asked(log: Path) -> list[tuple[str, float, int]]:
    """Each choice that an engine was asked for: its prompt, temperature and number."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(str(ids), temperature, n) for ids, temperature, choices in lines for n in choices]


def killed_after(answers: int, log: Path, cache: Path) -> int:
    """The exit code of a process that does the study and kills itself after so many answers."""
    tests = str(Path(__file__).resolve().parents[1])
    known = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    words = ["-m", "support.temperature", str(log), str(cache), str(answers)]
    return subprocess.run([sys.executable, *words], env=known, check=False).returncode


def test_after_a_kill_no_answer_is_asked_for_twice(tmp_path: Path) -> None:
    cache, total = tmp_path / "answers.sqlite", 6 * (1 + 3 + 3)
    first, second, third, without = (tmp_path / name for name in ("1", "2", "3", "without"))
    assert killed_after(11, first, cache) == -signal.SIGKILL
    with sw.ResponseCache(cache) as kept:
        num_kept = len(kept)
    assert 11 <= num_kept < total
    study_noting(second, cache)
    assert len(asked(second)) == len(set(asked(second))) == total - num_kept
    finished = set(asked(first)) - set(asked(second))
    assert len(finished) == num_kept, "what is not asked again had been asked before the kill"
    study_noting(third, cache)
    assert asked(third) == [], "with all answers there, none is asked for"
    study_noting(without, None)
    assert len(asked(without)) == total, "without a cache all are"


def test_a_resumed_study_is_the_undisturbed_one(generator, study, tmp_path, monkeypatch) -> None:
    class Stop:
        def update(self, finished: int, tokens: int) -> None:
            if finished >= 7:
                raise KeyboardInterrupt

    with sw.ResponseCache(tmp_path / "answers.sqlite") as cache:
        with pytest.raises(KeyboardInterrupt):
            temperature_study(generator, TASK, **SMALL, cache=cache, progress=Stop())
        assert len(cache)
        again = temperature_study(generator, TASK, **SMALL, thresholds=(0.1, 0.3), cache=cache)
    assert texts(again) == texts(study)
    # float32: what is read of an answer moves by rounding at most
    one, two = (
        np.array([each.certainty.entropy.sum() for each in s.samples]) for s in (again, study)
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_more_samples_ask_only_for_the_new_ones(generator, tmp_path) -> None:
    with sw.ResponseCache(tmp_path / "answers.sqlite") as cache:
        temperature_study(generator, TASK, **SMALL, cache=cache)
        temperature_study(generator, TASK, **{**SMALL, "samples": 5}, cache=cache)
        assert len(cache) == 6 * (1 + 5 + 5)
        assert cache.statistics.hits == 6 * (1 + 3 + 3)


# -- what is written -------------------------------------------------------------------------------


def test_the_folder_holds_the_numbers_the_answers_the_page_and_pictures(study, tmp_path) -> None:
    folder = study.write(tmp_path / "new" / "folder", command="stepwell experiment temperature m")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("accuracy.png", "answers.jsonl", "confident.png", "entropy.png"),
        *("report.html", "results.json"),
    ]
    results = json.loads((folder / "results.json").read_text())
    assert results["format_version"] == 1
    assert [row["temperature"] for row in results["rows"]] == [0, 0.5, 2]
    assert results["configuration"]["sampling"]["max_new_tokens"] == 4
    assert results["configuration"]["questions"]["task"] == TASK.plain()
    assert results["environment"]["stepwell"] == sw.__version__
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * (1 + 3 + 3)
    counts = sum(line["confident"]["0.1"] for line in lines if line["temperature"] == 2)
    assert counts == results["rows"][2]["confident"][0]["count"]
    shares = [line["correct"] for line in lines if line["temperature"] == 0.5]
    assert np.mean(shares) == pytest.approx(results["rows"][1]["accuracy"]["estimate"])
    assert all(line["mean_entropy"] > 0 > line["mean_logprob"] for line in lines)
    page = (folder / "report.html").read_text()
    assert "stepwell experiment temperature m" in page
    assert "At temperature 0 all samples are the same" in page
    for name in ("accuracy", "entropy", "confident"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_of_one_answer_has_no_majority_to_show(generator) -> None:
    lone = temperature_study(generator, TASK, temperatures=(0,), input_end=1, max_new_tokens=2)
    assert [series.name for series in lone.charts()["accuracy"].series] == ["one sample"]
    assert "majority of" not in lone.page().html()


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperatures": ()}, "expected different ones"),
        ({"temperatures": (0.5, 0.5)}, "expected different ones"),
        ({"temperatures": (0, 1e-7)}, "several are greedy"),
        ({"temperatures": (-1,)}, "temperature is -1"),
        ({"samples": 0}, "n is 0"),
        ({"thresholds": ()}, "expected some from 0"),
        ({"thresholds": (1.0,)}, "expected some from 0"),
        ({"thresholds": (0.5, 0.5)}, "expected different"),
        ({"temperature": 0.5}, "temperature is what the study sets"),
        ({"do_sample": False}, "do_sample is what the study sets"),
        ({"input_start": 4, "input_end": 4}, "no questions from 4 up to 4"),
        ({"input_start": -1}, "no questions from -1"),
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    generator, monkeypatch, how, said
) -> None:
    monkeypatch.setattr(module, "_asked", None)
    with pytest.raises(StepwellError, match=said):
        temperature_study(generator, TASK, **how)


def test_questions_come_as_they_are(generator, study) -> None:
    with pytest.raises(UsageError, match="are for a task"):
        temperature_study(generator, Questions(study.questions, {}), input_end=3)


def test_logits_that_are_not_finite_are_an_error_that_names_the_prompt() -> None:
    broken = generator_of()
    broken.model.final_norm.weight.data.fill_(float("nan"))
    with pytest.raises(LogitsError, match="An answer to '"):
        temperature_study(broken, TASK, **SMALL)


def test_a_plan_is_refused_as_a_configuration(generator) -> None:
    with pytest.raises(ConfigError):
        temperature_study(generator, TASK, temperatures=(1, 1))
