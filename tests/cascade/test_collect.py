"""All stages on all prompts: what is learnt of it, and what would have been seen in each state."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.beliefs.features import select
from stepwell.cascade.collect import Collected, collect
from stepwell.cascade.collection import PART, Asked, Collection
from stepwell.errors import CascadeError, StageError
from stepwell.tasks.questions import Question

PROMPTS = ["a>", "b>", "c>"]
TEXTS = {"small": ("x", "y", "z"), "middle": ("x", "no", "z"), "large": ("x", "y", "w")}
LOGPROBS = {"small": (-0.5, -1.5, -3.0), "middle": (-0.2, -2.0, -1.0), "large": (-0.1, -0.1, -0.4)}
RIGHT = ("x", "y", "w")
FEATURES = select(("logprobs", "agreement"))


@pytest.fixture
def stages(answer: Callable[..., Any], scripted: Callable[..., Any]) -> list[Any]:
    """Three stages, each with one answer of two tokens to each prompt."""
    return [
        scripted(
            name,
            {
                prompt: answer(text, [logprob, logprob - 0.1])
                for prompt, text, logprob in zip(PROMPTS, TEXTS[name], LOGPROBS[name], strict=True)
            },
        )
        for name in TEXTS
    ]


def questions(*weights: float) -> list[Question]:
    return [
        Question(prompt, right, right.__eq__, weight=weight, depth=place)
        for place, (prompt, right, weight) in enumerate(
            zip(PROMPTS, RIGHT, weights or (1.0, 1.0, 1.0), strict=True)
        )
    ]


def gather(stages: list[Any], *weights: float, **options: Any) -> Collected:
    return collect(stages, questions(*weights), features=FEATURES, **options)


def same(one: Collected, other: Collected) -> bool:
    arrays = [
        (each.seen.prompt, each.seen.answers, each.seen.pairs, each.good, each.accepted)
        for each in (one, other)
    ]
    equal = [np.array_equal(*pair, equal_nan=True) for pair in zip(*arrays, strict=True)]
    return all(equal) and (one.prompts, one.texts) == (other.prompts, other.texts)


def test_every_stage_is_asked_every_prompt_and_graded(stages: list[Any]) -> None:
    told: list[str] = []
    data = gather(stages, on_stage=told.append, temperature=0.0)
    assert told == ["small", "middle", "large"]
    assert all(stage.asked == [(PROMPTS, {"temperature": 0.0})] for stage in stages)
    np.testing.assert_array_equal(data.good, [[1, 1, 1], [1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(data.weights, [1, 1, 1])
    np.testing.assert_array_equal(data.depths, [0, 1, 2])
    assert data.texts == tuple(TEXTS.values())


def test_where_nothing_else_can_tell_right_is_what_the_largest_stage_says(
    stages: list[Any],
) -> None:
    data = gather(stages, by_agreement=True)
    np.testing.assert_array_equal(data.good, [[1, 1, 1], [1, 0, 1], [0, 0, 1]])
    stages[2].script["a>"] = replace(stages[2].script["a>"], text="other")
    changed = gather(stages, by_agreement=True)
    np.testing.assert_array_equal(changed.good[0], [0, 0, 1])


def test_with_several_answers_a_label_is_the_share_that_is_right(stages: list[Any]) -> None:
    """The scripted stage is made to say something else to another seed."""
    plain, small = stages[0].generate, stages[0]

    def generate(prompts: Any, **asked: Any) -> Any:
        replies = plain(prompts, **asked)
        if asked.get("seed") != 8:
            return replies
        return [replace(each, completion=replace(each.completion, text="x")) for each in replies]

    small.generate = generate
    data = gather(stages, rollouts=2, seed=7)
    np.testing.assert_array_equal(data.good[:, 0], [1, 0.5, 0])
    assert [asked["seed"] for _, asked in small.asked] == [7, 8]
    assert data.texts[0] == TEXTS["small"], "what is looked at is the first answer"


def test_a_stage_that_cannot_answer_stops_the_collection(
    stages: list[Any], answer: Callable[..., Any]
) -> None:
    stages[1].script["b>"] = answer("n", [-0.1], "error")
    with pytest.raises(StageError, match="Stage 'middle' did not answer prompt 1: error"):
        gather(stages)


def test_what_stays_of_an_answer_is_its_common_beginning(
    stages: list[Any], answer: Callable[..., Any]
) -> None:
    data = gather(stages)
    np.testing.assert_array_equal(data.accepted[:, 0, 1], [1, 1, 1])  # all have the ids 0, 1
    stages[2].script["b>"] = replace(answer("w", [-0.1] * 4), token_ids=(0, 9, 2, 3))
    data = gather(stages)
    np.testing.assert_array_equal(data.accepted[1], [[0, 1, 0.5], [0, 0, 0.5], [0, 0, 0]])


def test_some_of_the_prompts_can_be_taken_and_parts_joined(stages: list[Any]) -> None:
    data = gather(stages, 1.0, 2.0, 3.0)
    part = data.take(np.array([True, False, True]))
    np.testing.assert_array_equal(part.weights, [1.0, 3.0])
    np.testing.assert_array_equal(part.good, data.good[[0, 2]])
    assert part.texts[2] == ("x", "w")
    assert part.prompts == ("a>", "c>")
    parts = [data.take(np.array([place])) for place in range(3)]
    assert same(Collected.joined(parts), data)
    assert not same(Collected.joined(parts[::-1]), data)


def test_beliefs_do_not_know_the_answers_of_skipped_stages(world: Any) -> None:
    """Other answers of a stage that a state skips change nothing there, and something elsewhere."""
    data, predictor = world.data("test"), world.fitted.predictor
    answers, pairs = data.seen.answers.copy(), data.seen.pairs.copy()
    answers[:, 1] = np.random.default_rng(1).normal(size=answers[:, 1].shape)
    pairs[:, 2, 1] = 1.0 - pairs[:, 2, 1]  # what the third says beside the second
    changed = replace(data, seen=replace(data.seen, answers=answers, pairs=pairs))
    ours, theirs = data.paths(predictor), changed.paths(predictor)
    for state in (0, 0b001, 0b100, 0b101):
        np.testing.assert_array_equal(ours.after(state), theirs.after(state))
    for state in (0b010, 0b011, 0b110, 0b111):
        assert not np.array_equal(ours.after(state), theirs.after(state))


# -- on disk ---------------------------------------------------------------------------------

ASKED = Asked(("weights of a", "weights of b"), FEATURES.groups, "facts", "greedy", 1)


class Asker:
    """Answers questions as the world's stages do, and counts them."""

    def __init__(self, world: Any, stop_after: int = 10**9) -> None:
        self.world, self.asked, self.stop_after = world, 0, stop_after
        self.questions = [
            Question(prompt, "right", "right".__eq__) for prompt in self._prompts(world)
        ]

    @staticmethod
    def _prompts(world: Any) -> list[str]:
        return [f"prompt {number % world.count}" for number in range(2 * PART + 50)]

    def __call__(self, some: Any) -> Collected:
        if self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(some)
        return collect(self.world.stages(), some, features=FEATURES)


def test_a_collection_goes_on_where_it_was_stopped(world: Any, tmp_path: Path) -> None:
    whole = Asker(world)
    expected = collect(world.stages(), whole.questions, features=FEATURES)
    told: list[int] = []
    stopped = Asker(world, stop_after=PART)
    collection = Collection(tmp_path / "c", ASKED, FEATURES)
    with pytest.raises(KeyboardInterrupt):
        collection.collect(stopped.questions, stopped)
    rest = Asker(world)
    again = Collection(tmp_path / "c", ASKED, FEATURES)
    assert same(again.collect(rest.questions, rest, told.append), expected)
    assert rest.asked == PART + 50, "the first part was not asked for again"
    assert told == [PART, 2 * PART, 2 * PART + 50]
    nobody = Asker(world, stop_after=0)
    assert same(again.collect(nobody.questions, nobody), expected)
    assert same(again.collect(nobody.questions[:70], nobody), expected.take(np.arange(70)))
    assert same(again.read(), expected)


def test_more_questions_are_asked_for_where_a_part_is_not_full(world: Any, tmp_path: Path) -> None:
    asker = Asker(world)
    collection = Collection(tmp_path / "c", ASKED, FEATURES)
    collection.collect(asker.questions[:80], asker)
    data = collection.collect(asker.questions[:200], asker)
    assert len(data) == 200
    assert len(collection.read()) == 200


@pytest.mark.parametrize("name", list(vars(ASKED)))
def test_answers_that_were_asked_for_otherwise_are_refused(
    world: Any, tmp_path: Path, name: str
) -> None:
    asker = Asker(world)
    Collection(tmp_path, ASKED, FEATURES).collect(asker.questions[:10], asker)
    value = getattr(ASKED, name)
    other = replace(ASKED, **{name: (*value, "x") if isinstance(value, tuple) else f"{value}0"})
    if name == "rollouts":
        other = replace(ASKED, rollouts=5)
    with pytest.raises(CascadeError, match=f"its {name} are not those of the ladder now"):
        Collection(tmp_path, other, FEATURES).read()


def test_answers_to_other_questions_are_refused(world: Any, tmp_path: Path) -> None:
    asker = Asker(world)
    collection = Collection(tmp_path, ASKED, FEATURES)
    collection.collect(asker.questions[:10], asker)
    with pytest.raises(CascadeError, match="holds answers to other questions"):
        collection.collect(asker.questions[1:11], asker)


def test_a_damaged_part_is_named_and_an_unfinished_one_is_asked_again(
    world: Any, tmp_path: Path
) -> None:
    asker = Asker(world)
    collection = Collection(tmp_path, ASKED, FEATURES)
    collection.collect(asker.questions[:10], asker)
    arrays = tmp_path / "part-00000.safetensors"
    payload = arrays.read_bytes()
    for damage in (payload[:-1], payload[:200] + b"!" + payload[201:], b""):
        arrays.write_bytes(damage)
        with pytest.raises(CascadeError, match="part-00000 is damaged") as caught:
            collection.read()
        assert "delete its two files" in caught.value.fix
    arrays.write_bytes(payload)
    texts = json.loads((tmp_path / "part-00000.json").read_text())
    (tmp_path / "part-00000.json").unlink()
    with pytest.raises(CascadeError, match="holds no answers"):
        collection.read()
    collection.collect(asker.questions[:10], asker)
    assert json.loads((tmp_path / "part-00000.json").read_text()) == texts
