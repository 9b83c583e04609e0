"""Whole answers: the same with a draft and without, found in a cache as they were made."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest

from stepwell.errors import DataError, StepwellError, TokenizerError
from stepwell.evals.bench import response_cache
from stepwell.evals.bench.contest import Bench
from stepwell.evals.bench.figures import Bar, Row
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.prompts import prompts_of, tokenizer_of
from stepwell.evals.bench.sizes import llama_shape, make_model
from stepwell.evals.bench.speculation import Answering, checked_rate, requests_of
from stepwell.generate.draft import Pace
from stepwell.generate.engine import InferenceEngine
from stepwell.text.tokenizer import Tokenizer

SHAPE = llama_shape(32, 64, 2, (2, 1), 96).resized(context_length=64)
PLAN = BenchPlan(repetitions=2, prompts=3, answer_tokens=16, pause_s=0.0)
TEXT = "".join(f"Step {number} goes. " for number in range(100, 200))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model without a tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "random"
    make_model(SHAPE, directory)
    return Subject("random", directory)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The same model with a tokenizer of the characters in TEXT."""
    directory = tmp_path_factory.mktemp("models") / "reading"
    make_model(SHAPE, directory)
    Tokenizer.character(sorted(set(TEXT))).save(directory)
    return Subject("reading", directory)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens are drafted at each step, whether that pays or not."""
    monkeypatch.setattr(Pace, "choose", lambda *_: 4)


def asked(question, subject: Subject, plan: BenchPlan) -> dict[str, Row]:
    """The rows of a question, by case."""
    return {row.case: row for row in Bench(plan, (question,), {}).rows(subject)}


def gained(row: Row) -> float:
    """The tokens a step that a row tells of."""
    found = re.match(r"([\d.]+) tokens a step", row.note)
    assert found is not None, row.note
    return float(found[1])


def test_every_drafter_is_held_against_the_model_alone(random) -> None:
    rows = asked("speculation", random, PLAN.changed(draft=random.directory))
    assert list(rows) == [
        *("lookup, temperature 0", "drafter, temperature 0"),
        *("lookup, temperature 0.8", "drafter, temperature 0.8"),
    ]
    assert all(row.ratio is not None and not row.problem for row in rows.values())
    assert {row.against for row in rows.values()} == {"alone"}
    assert all("random ids" in row.note and row.bar is None for row in rows.values())


def test_a_drafter_that_is_the_model_itself_gains_all_that_it_drafts(eager, random) -> None:
    rows = asked("speculation", random, PLAN.changed(draft=random.directory))
    for temperature in ("0", "0.8"):
        assert gained(rows[f"drafter, temperature {temperature}"]) > 4
    assert gained(rows["lookup, temperature 0.8"]) < 2


def test_alone_a_step_brings_one_token(eager, random) -> None:
    side = Answering(Ours(random.directory, "bf16").model, requests_of([[3, 4, 5]], 9, 0.0))
    assert [len(ids) for ids in side.answers()] == [9]
    assert side.tokens_a_step == 1.0


def test_answers_that_differ_are_a_row_that_says_where(
    eager, random, tmp_path, monkeypatch
) -> None:
    other = tmp_path / "other"
    make_model(SHAPE.resized(width=16, num_heads=1), other)
    submit = InferenceEngine.submit
    monkeypatch.setattr(InferenceEngine, "submit", partialmethod(submit, draft_rule="rejection"))
    rows = asked("speculation", random, PLAN.changed(draft=other))
    lossy = rows["drafter, temperature 0.8"]
    assert re.search(r"Answer \d is not that of the model alone, from token \d+ on", lossy.problem)
    assert (lossy.ours, lossy.ratio, lossy.note) == (None, None, "random ids")
    assert not rows["drafter, temperature 0"].problem, "the rejection rule is greedy here"


def test_one_wrong_token_is_seen(random) -> None:
    side = Answering(Ours(random.directory, "bf16").model, requests_of([[3, 4], [5, 6]], 9, 0.0))
    expected = side.answers()
    assert checked_rate(side, expected, 0) > 0
    expected[1][7] += 1
    with pytest.raises(StepwellError, match=r"Answer 1 .* from token 7 on"):
        checked_rate(side, expected, 0)


def test_validation_text_has_a_bar(reading, text) -> None:
    rows = asked("speculation", reading, PLAN.changed(text=text))
    assert [row.bar for row in rows.values()] == [Bar(1.5)] * 2
    assert all(row.ratio is not None and "random" not in row.note for row in rows.values())


@pytest.mark.parametrize("question", ["speculation", "cache"])
def test_what_cannot_be_asked_is_a_row_that_says_why(question, random, reading, text) -> None:
    def problem(subject: Subject, **changes: object) -> str:
        [row] = asked(question, subject, PLAN.changed(**changes)).values()
        assert row.ours is None
        return row.problem

    assert "do not fit the context of 64" in problem(random, answer_tokens=33)
    assert "holds no tokenizer" in problem(random, text=text)
    assert "expected 16" in problem(reading, text=text, prompts=400)


def test_a_drafter_of_another_vocabulary_leaves_the_lookup_alone(random, tmp_path) -> None:
    make_model(llama_shape(16, 32, 1, (1, 1), 80), tmp_path / "foreign")
    rows = asked("speculation", random, PLAN.changed(draft=tmp_path / "foreign"))
    assert "vocabulary of 80" in rows["drafter, temperature 0"].problem
    assert rows["lookup, temperature 0"].ratio is not None


def test_prompts_are_stretches_from_all_over_the_text(reading, text) -> None:
    prompts = prompts_of(reading.directory, 96, PLAN.changed(text=text))
    texts = [Tokenizer.load(reading.directory).decode(ids) for ids in prompts]
    starts = [TEXT.index(each) for each in texts]
    assert [len(each) for each in texts] == [16] * 3
    assert starts[0] == 0
    assert starts[1] > len(TEXT) // 4
    assert starts[2] > len(TEXT) // 2


def test_a_text_that_nobody_can_read_is_refused(reading, random, text, tmp_path) -> None:
    garbled = tmp_path / "garbled.txt"
    garbled.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"garbled\.txt cannot be read"):
        prompts_of(reading.directory, 96, PLAN.changed(text=garbled))
    with pytest.raises(TokenizerError):
        prompts_of(random.directory, 96, PLAN.changed(text=text))


def test_without_a_tokenizer_every_id_is_a_character(random, reading) -> None:
    spelling = tokenizer_of(random.directory, 96)
    texts = [spelling.decode([token_id]) for token_id in range(96)]
    assert len(set(texts)) == 96
    assert spelling.encode("".join(texts)) == list(range(96))
    assert tokenizer_of(reading.directory, 96).decode([1]) == sorted(set(TEXT))[1]


@pytest.mark.parametrize("name", ["random", "reading"])
def test_answers_that_are_found_are_held_against_those_that_are_made(
    name: str, request: pytest.FixtureRequest, text
) -> None:
    plan = PLAN.changed(text=text) if name == "reading" else PLAN
    rows = asked("cache", request.getfixturevalue(name), plan)
    assert list(rows) == ["all found", "one look-up"]
    found, look_up = rows.values()
    assert (found.problem, look_up.problem) == ("", "")
    assert found.ratio is not None
    assert look_up.ours is not None
    assert look_up.ours.median > 0
    assert ("random ids" in found.note) == (name == "random")


def test_a_cache_that_finds_nothing_or_another_text_is_seen(random, monkeypatch) -> None:
    class Forgetful(response_cache.TimedCache):
        def put_many(self, answers):
            pass

    class Altering(response_cache.TimedCache):
        def get_many(self, keys):
            return [each and replace(each, text="?") for each in super().get_many(keys)]

    monkeypatch.setattr(response_cache, "TimedCache", Forgetful)
    assert asked("cache", random, PLAN)["all found"].problem == "0 of 3 answers were found, not 3."
    monkeypatch.setattr(response_cache, "TimedCache", Altering)
    assert "not those that were made" in asked("cache", random, PLAN)["all found"].problem
