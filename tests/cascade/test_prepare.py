"""Preparing a ladder: what is asked, what serves which purpose, what is kept and for how long."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.collect import Collected
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.prepare import SHARES, TURNS, Preparation, first_prompts
from stepwell.cascade.splits import UsedPrompts
from stepwell.errors import CascadeError, ConfigError, FormatError, UsageError
from stepwell.tasks.arithmetic import Arithmetic
from stepwell.tasks.facts import Facts
from stepwell.tasks.questions import Questions

FACTS = Facts(facts=40)
COUNT = 300
NAMES = ("small", "large")


def train(task: Any) -> dict[str, Any]:
    """How a stage would be made that learns a task; nothing is trained here."""
    return {"task": task.plain(), "preset": "tiny", "steps": 1}


def ladder(**fields: Any) -> LadderConfig:
    """A ladder of two stages over facts, with fields of the file changed."""
    stages = [{"name": name, "model": name, "train": train(FACTS)} for name in NAMES]
    plain = {
        "stages": stages,
        "predictor": {"hidden": 0, "features": ["logprobs"]},
        "serving": {"max_rows": 4},
    }
    return LadderConfig.parse({**plain, **fields})


def write_questions(path: Path, numbers: Any) -> None:
    rows = [{"prompt": f"prompt {number}", "answer": str(number)} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def prepared(tmp_path: Path, scripted: Callable[..., Any], answer: Callable[..., Any]) -> Any:
    """Makes a preparation over a file of questions, a third of which the small stage gets wrong.

    Fields are those of the ladder file.
    """
    write_questions(tmp_path / "questions.jsonl", range(COUNT))
    scripts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for number in range(COUNT):
        wrong = number % 3 == 0
        prompt, logprob = f"prompt {number}", -2.0 - number % 5 if wrong else -0.1 - number % 7
        scripts[0][prompt] = answer("?" if wrong else str(number), [logprob])
        scripts[1][prompt] = answer(str(number), [-0.2])
    stages = [scripted(*each) for each in zip(NAMES, scripts, (1.0, 9.0), strict=True)]

    def make(**fields: Any) -> Preparation:
        file = {"questions": {"file": "questions.jsonl"}, **fields}
        return Preparation(tmp_path / "ladder.yaml", ladder(**file), stages)

    return make


def collected(preparation: Preparation, count: int | None = None) -> Collected:
    return preparation.collect(preparation.questions(count))


# -- what is asked -----------------------------------------------------------------------------


def test_stages_are_asked_what_they_all_learnt(tmp_path: Path) -> None:
    preparation = Preparation(tmp_path / "ladder.yaml", ladder(), ())
    assert preparation.task() == FACTS
    assert preparation.questions(3).items == Questions.of_facts(FACTS).items  # all of them


def test_a_task_in_the_file_counts_more_than_what_was_learnt(tmp_path: Path) -> None:
    task = Arithmetic(digits=2)
    asked = Preparation(tmp_path / "ladder.yaml", ladder(questions={"task": task.plain()}), ())
    assert asked.task() == task
    assert asked.questions(7).items == Questions.of_task(task, 0, 7).items


def test_stages_that_learnt_different_things_are_not_asked_on_a_guess(tmp_path: Path) -> None:
    learnt = [{"train": train(FACTS)}, {"train": train(Facts(facts=41))}]
    for parts in (learnt, [{}, {}]):
        pairs = zip(NAMES, parts, strict=True)
        stages = [{"name": name, "model": name, **part} for name, part in pairs]
        preparation = Preparation(tmp_path / "ladder.yaml", ladder(stages=stages), ())
        with pytest.raises(ConfigError, match="does not say what to ask") as raised:
            preparation.questions()
        assert "add `questions:" in raised.value.fix


def test_more_questions_of_a_file_go_on_with_the_same_collection(prepared: Any) -> None:
    preparation = prepared()
    few, many = preparation.questions(10), preparation.questions(10 * COUNT)
    assert (len(few), len(many)) == (10, COUNT)
    assert many.items[:10] == few.items
    assert few.source == many.source
    collected(preparation, 10)
    assert len(collected(preparation)) == COUNT
    for count in (0, -1):
        with pytest.raises(UsageError, match="expected 1 or more"):
            preparation.questions(count)


# -- what serves what --------------------------------------------------------------------------


def faults(parts: dict[str, Any], prompts: tuple[str, ...]) -> list[str]:
    """What is wrong with splits: prompts in none, in two, or serving two purposes."""
    places = np.concatenate(list(parts.values()))
    found = [] if sorted(places.tolist()) == list(range(len(prompts))) else ["not each once"]
    homes: dict[str, set[str]] = {}
    for name, rows in parts.items():
        for row in rows:
            homes.setdefault(prompts[row], set()).add(name)
    return found + [prompt for prompt, names in homes.items() if len(names) > 1]


def test_no_question_serves_two_purposes(prepared: Any) -> None:
    data = collected(prepared())
    twice = Collected.joined([data, data.take(np.arange(1, 51))])
    parts = prepared().rows(twice)
    assert set(parts) == set(SHARES)
    assert faults(parts, twice.prompts) == []
    for name, share in SHARES.items():
        assert len(parts[name]) == pytest.approx(share * len(twice), abs=0.1 * len(twice))
    by_turns = {name: np.arange(place, len(twice), 4) for place, name in enumerate(SHARES)}
    assert faults(by_turns, twice.prompts)  # negative control


def test_later_questions_move_no_earlier_one(prepared: Any) -> None:
    data = collected(prepared())
    some, everything = (prepared().rows(each) for each in (data.take(np.arange(100)), data))
    for name, rows in some.items():
        assert rows.tolist() == [row for row in everything[name].tolist() if row < 100]


def test_facts_are_dealt_out_in_turns_and_certify_nothing(tmp_path: Path, prepared: Any) -> None:
    facts = Preparation(tmp_path / "ladder.yaml", ladder(), ())
    parts = facts.rows(collected(prepared()).take(np.arange(40)))
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        name: list(range(start, 40, 3)) for start, name in enumerate(TURNS)
    }


def test_shares_of_several_answers_certify_nothing(prepared: Any) -> None:
    preparation = prepared(questions={"file": "questions.jsonl", "rollouts": 2})
    data = collected(preparation)
    parts = preparation.rows(data)
    assert set(parts) == set(SHARES) - {"certification"}
    assert faults(parts, data.prompts) == []


def test_what_certifies_was_not_fitted_on(prepared: Any) -> None:
    preparation = prepared()
    data = collected(preparation)
    fitted = preparation.fit(data, preparation.calibrate(data.prompts))
    parts = {name: data.take(rows) for name, rows in preparation.rows(data).items()}
    marks = {name: UsedPrompts.of(part.prompts) for name, part in parts.items()}
    assert fitted.certificate is not None
    assert fitted.certificate.used == marks.pop("certification")
    assert not any(fitted.certificate.used.shared(other) for other in marks.values())
    np.testing.assert_array_equal(fitted.calibration.good, parts["calibration"].good)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"questions": {}}, "no two facts are independent draws"),
        ({"questions": {"file": "questions.jsonl", "rollouts": 2}}, "not the shares of several"),
    ],
)
def test_a_certificate_that_cannot_be_is_refused_before_anything_is_asked(
    prepared: Any, fields: dict[str, Any], said: str
) -> None:
    prepared(**fields).check()  # negative control
    with pytest.raises(ConfigError, match=said):
        prepared(policy={"lambda": {"certificate": {}}}, **fields).check()
    prepared(policy={"lambda": {"certificate": {}}}).check()


def test_too_few_questions_are_refused_with_their_number(prepared: Any) -> None:
    preparation = prepared()
    data = collected(preparation, 2)
    costs = preparation.calibrate(data.prompts)
    lonely = data.take(preparation.rows(data)["test"][:1])
    for few in (lonely, data.take(np.arange(0))):
        with pytest.raises(CascadeError, match=f"Of {len(few)} questions none is left"):
            preparation.fit(few, costs)
    assert not preparation.fitted.exists()


def test_what_is_fitted_is_what_a_cascade_decides_by(prepared: Any) -> None:
    preparation = prepared()
    data = collected(preparation)
    fitted = preparation.fit(data, preparation.calibrate(data.prompts))
    cascade = Cascade(preparation.config, preparation.stages, fitted)
    answers = cascade.generate_batch(data.prompts, lam=1000.0)
    assert {answer.text for answer in answers} >= {str(number) for number in range(0, COUNT, 3)}


# -- costs -------------------------------------------------------------------------------------


def test_costs_are_kept_and_read_again(prepared: Any) -> None:
    preparation = prepared()
    assert preparation.costs() is None
    costs = preparation.calibrate(["prompt 1", "prompt 2"])
    assert prepared().costs() == costs
    assert list(costs.stages[0].seconds) == ["4", "1"]  # the same prompts again, up to max_rows


@pytest.mark.parametrize(
    "fields",
    [
        {"serving": {"max_rows": 3}},
        {"sampling": {"max_new_tokens": 2}},
        {"predictor": {"features": ["logprobs", "margin"]}},
        {"stages": [{"name": name, "model": name, "price": {"prompt": 2}} for name in NAMES]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_costs_of_another_ladder_count_for_nothing(prepared: Any, fields: dict[str, Any]) -> None:
    costs = prepared().calibrate(["prompt 1"])
    assert prepared(policy={"lambda": 3.0}).costs() == costs  # what costs do not depend on
    assert prepared(**fields).costs() is None


def test_costs_of_other_weights_count_for_nothing(prepared: Any) -> None:
    preparation = prepared()
    preparation.calibrate(["prompt 1"])
    assert (
        Preparation(preparation.ladder_file, preparation.config, preparation.stages[::-1]).costs()
        is None
    )


def test_damaged_costs_are_said_and_count_for_nothing(
    prepared: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared().calibrate(["prompt 1"])
    path = tmp_path / "ladder.collected/costs.json"
    whole = path.read_text()
    for spoilt in (whole[: len(whole) // 2], whole.replace("seconds", "minutes"), "[]"):
        path.write_text(spoilt)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert prepared().costs() is None
        assert "costs.json is damaged" in caplog.text
    path.write_text(json.dumps({**json.loads(whole), "format_version": 99}))
    with pytest.raises(FormatError, match="format_version 99"):
        prepared().costs()


def test_first_prompts_begin_again_where_there_are_too_few(prepared: Any) -> None:
    prompts = first_prompts(prepared().questions(3), 7)
    assert prompts == [f"prompt {number}" for number in (0, 1, 2, 0, 1, 2, 0)]
