"""The cascade at work on scripted stages: what it does live is what its rule says on paper."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stepwell.cascade.answer import Answer
from stepwell.cascade.beliefs.features import Seen, select
from stepwell.cascade.collect import Collected
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.rule.paths import Outcome
from stepwell.errors import ConfigError, PromptError

NAMES = ("small", "middle", "large")
SKIPPING = (0.1, 0.9, 1.0)  # costs at which the middle stage is not worth a visit
ALIKE = (0.9, 0.95, 1.0)  # costs at which the largest stage is asked at once
SETTINGS = [((), 0.5), ((), 2.0), ((), 10.0), (SKIPPING, 1.0), (SKIPPING, 10.0), (ALIKE, 10.0)]


def replayed(cascade: Cascade, data: Collected, lam: float) -> Outcome:
    """What the rule does with recorded answers."""
    return cascade.policy(lam).run(data.paths(cascade.fitted.predictor))


def route(answer: Answer) -> tuple[str, ...]:
    return tuple(visit.stage for visit in answer.trace)


def routes_of(outcome: Outcome) -> list[tuple[str, ...]]:
    return [tuple(np.array(NAMES)[run]) for run in outcome.stages_run]


@pytest.mark.parametrize(("costs", "lam"), SETTINGS)
def test_live_decisions_are_those_of_the_replay(world: Any, costs: Any, lam: float) -> None:
    cascade, prompts = world.cascade(*costs), world.prompts()
    outcome = replayed(cascade, world.data("test"), lam)
    answers = cascade.generate_batch(prompts, lam=lam)
    assert [route(answer) for answer in answers] == routes_of(outcome)
    assert [answer.stage for answer in answers] == [
        NAMES[number - 1] for number in outcome.stage_returned
    ]
    np.testing.assert_allclose([answer.cost for answer in answers], outcome.cost, rtol=1e-12)
    right = [answer.text == "right" for answer in answers]
    np.testing.assert_array_equal(right, outcome.good == 1)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.completion is world.scripts[NAMES.index(answer.stage)][prompt]
        assert answer.text == answer.completion.text


@pytest.mark.parametrize("lam", [0.5, 2.0, 10.0])
def test_with_drafts_live_costs_are_those_of_the_replay(world: Any, lam: float) -> None:
    """What a prompt pays depends on how sure the draft was, and on how much of it stayed."""
    stages, data = world.stages(), world.data("test")
    cascade = world.cascade(stages=stages, drafted=0.3)
    fitted, config = cascade.fitted, cascade.config
    paid, known = fitted.steps(config, data), fitted.mean_steps(config)
    outcome = cascade.policy(lam).run(data.paths(fitted.predictor), paid, known)
    answers = cascade.generate_batch(world.prompts(), lam=lam)
    assert [route(answer) for answer in answers] == routes_of(outcome)
    np.testing.assert_allclose([answer.cost for answer in answers], outcome.cost, rtol=1e-12)
    visits = [visit for answer in answers for visit in answer.trace[1:]]
    modes = Counter(visit.mode for visit in visits)
    assert lam < 1 or modes["verified"] > 50
    assert modes["verified"] == sum(len(drafts) for stage in stages for drafts in stage.drafts)


def test_beliefs_of_another_prompt_do_not_explain_the_decisions(world: Any) -> None:
    """A control of the test above: it sees features that are those of the prompt beside."""
    cascade, data = world.cascade(), world.data("test")
    beside = replace(data, seen=data.seen.take(np.roll(np.arange(len(data)), 1)))
    live = [route(answer) for answer in cascade.generate_batch(world.prompts(), lam=3.0)]
    assert live == routes_of(replayed(cascade, data, 3.0))
    other = routes_of(replayed(cascade, beside, 3.0))
    assert sum(ours != theirs for ours, theirs in zip(live, other, strict=True)) > 60


def test_the_settings_show_stopping_skipping_and_recall(world: Any) -> None:
    """What the tests of this file speak of does happen in them."""
    seen: Counter[tuple[str, ...]] = Counter()
    recalled = 0
    for costs, lam in SETTINGS:
        answers = world.cascade(*costs).generate_batch(world.prompts(), lam=lam)
        seen.update(route(answer) for answer in answers)
        recalled += sum(answer.stage != route(answer)[-1] for answer in answers)
    stopped, skipped = seen[("small",)], seen[("small", "large")]
    assert min(stopped, skipped, seen[("small", "middle")], seen[NAMES], seen[("large",)]) > 10
    assert recalled > 30


class Believes:
    """A predictor that is sure of the large stage, until it has seen its answer."""

    feature_set, num_stages = select(("logprobs",)), 3

    def beliefs(self, seen: Seen, state: int) -> Any:
        row = (0.6, 0.3, 0.2) if state & 4 else (0.1, 0.2, 0.99)
        return np.tile(row, (len(seen), 1))


def test_an_earlier_answer_is_returned_where_it_is_believed_in_more(world: Any) -> None:
    whole = world.cascade()
    fitted = replace(whole.fitted, predictor=Believes(), calibration=whole.fitted.calibration)
    cascade = Cascade(whole.config, world.stages(), fitted)
    stop_first = cascade.generate_batch(world.prompts(), lam=0.0)
    answers = cascade.resume(stop_first, lam=10.0)
    assert {(route(answer), answer.stage) for answer in answers} == {(("small", "large"), "small")}
    assert all(answer.text == answer.trace[0].answer for answer in answers)
    # without recall other texts would have been returned
    assert sum(answer.text != answer.trace[-1].answer for answer in answers) > 20
    assert all(answer.p_good == 0.6 for answer in answers)


def test_one_by_one_is_the_same_as_together_and_order_is_kept(world: Any) -> None:
    cascade, prompts = world.cascade(), world.prompts()[:60]
    together = cascade.generate_batch(prompts, lam=3.0)
    backwards = cascade.generate_batch(prompts[::-1], lam=3.0)[::-1]
    for prompt, batched, reverse in zip(prompts, together, backwards, strict=True):
        alone = cascade.generate(prompt, lam=3.0)
        for other in (batched, reverse):
            assert (alone.text, route(alone), alone.stage) == (
                other.text,
                route(other),
                other.stage,
            )
            assert alone.completion is other.completion
            assert alone.cost == other.cost
            assert alone.p_good == pytest.approx(other.p_good, abs=1e-12)
    assert len({route(answer) for answer in together}) > 1


def test_the_same_prompt_twice_gets_the_same_answer_twice(world: Any) -> None:
    prompt = world.prompts()[3]
    first, second = world.cascade().generate_batch([prompt, prompt], lam=3.0)
    assert first == second


def test_prompts_that_need_a_stage_are_answered_together(world: Any) -> None:
    stages = world.stages()
    answers = world.cascade(stages=stages).generate_batch(world.prompts(), lam=10.0)
    for stage in stages:
        visitors = [
            prompt
            for prompt, answer in zip(world.prompts(), answers, strict=True)
            if stage.name in route(answer)
        ]
        assert [prompts for prompts, _ in stage.asked] == [visitors]


def test_a_small_price_of_failure_goes_shallow_and_a_large_one_deep(world: Any) -> None:
    cascade, prompts, data = world.cascade(), world.prompts(), world.data("test")
    shallow, deep = (cascade.generate_batch(prompts, lam=lam) for lam in (0.0, 1000.0))
    assert {route(answer) for answer in shallow} == {("small",)}
    assert all("large" in route(answer) for answer in deep)
    right = [np.mean([answer.text == "right" for answer in answers]) for answers in (shallow, deep)]
    assert right[0] == pytest.approx(data.good[:, 0].mean())
    assert right[1] > data.good[:, 2].mean() - 0.02
    spent = [
        np.mean([answer.cost for answer in cascade.generate_batch(prompts, lam=lam)])
        for lam in (0.0, 0.5, 1.0, 3.0, 10.0)
    ]
    assert spent == sorted(spent)


def test_the_trace_adds_up(world: Any) -> None:
    for costs, lam in SETTINGS:
        cascade = world.cascade(*costs)
        prices = dict(zip(NAMES, cascade.policy(lam).costs[0], strict=True))
        for answer in cascade.generate_batch(world.prompts()[:80], lam=lam):
            assert answer.cost == pytest.approx(sum(visit.cost for visit in answer.trace))
            assert answer.cost == pytest.approx(sum(prices[name] for name in route(answer)))
            assert answer.p_good == answer.trace[-1].p_good
            assert 0 < answer.p_good < 1
            assert all(visit.advantage > 0 for visit in answer.trace[:-1])
            assert answer.trace[-1].advantage <= 0
            assert (answer.mode, answer.certified) == ("lossless", False)
            assert answer.stopped == ("last" if "large" in route(answer) else "enough")


def test_an_answer_says_whether_the_answers_were_read_to_choose_it(world: Any) -> None:
    direct = world.cascade(*ALIKE).generate_batch(world.prompts(), lam=10.0)
    assert {(route(answer), answer.selected_on) for answer in direct} == {(("large",), "none")}
    chosen = world.cascade().generate_batch(world.prompts(), lam=3.0)
    assert {answer.selected_on for answer in chosen} == {"answer"}


def test_sampling_goes_through_to_every_stage(world: Any) -> None:
    stages = world.stages()
    cascade = world.cascade(stages=stages)
    cascade.config = cascade.config.changed(sampling={"temperature": 0.0, "max_new_tokens": 3})
    cascade.generate(world.prompts()[0], lam=1000.0, temperature=0.8, seed=7)
    asked = [sampling for stage in stages for _, sampling in stage.asked]
    assert asked
    assert all(each == {"temperature": 0.8, "max_new_tokens": 3, "seed": 7} for each in asked)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"n": 4}, "one answer to a prompt, n is 4"),
        ({"num_return_sequences": 2}, "one answer to a prompt, n is 2"),
        ({"temprature": 0.1}, "Did you mean 'temperature'"),
        ({"top_p": 7.0}, "top_p is 7.0"),
    ],
)
def test_sampling_that_cannot_be_is_refused_before_any_stage_is_asked(
    world: Any, sampling: dict[str, Any], words: str
) -> None:
    stages = world.stages()
    with pytest.raises(ConfigError, match=words):
        world.cascade(stages=stages).generate("prompt 2", **sampling)
    assert not any(stage.asked for stage in stages)


@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf")])
def test_a_lambda_that_is_no_price_is_refused(world: Any, lam: float) -> None:
    with pytest.raises(ConfigError, match=r"lambda is .*, expected a finite number from 0"):
        world.cascade().generate("prompt 2", lam=lam)


def test_without_a_lambda_the_ladder_files_own_counts(world: Any) -> None:
    prompts = world.prompts()
    for lam in (0.0, 3.0):
        own = world.cascade(**{"lambda": lam}).generate_batch(prompts)
        asked = world.cascade().generate_batch(prompts, lam=lam)
        assert own == asked
    auto = world.cascade(**{"lambda": "auto"})
    assert auto.generate_batch(prompts) == auto.generate_batch(prompts, lam=auto.fitted.lam)


def test_a_batch_is_a_list_of_prompts(world: Any) -> None:
    for nothing in ([], (), "prompt 2", ""):
        with pytest.raises(PromptError, match="a list of at least one prompt"):
            world.cascade().generate_batch(nothing)


class Watched:
    """A progress bar that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def update(self, finished: int, tokens: int) -> None:
        self.told.append((finished, tokens))


def test_progress_counts_answered_prompts_and_all_tokens(world: Any) -> None:
    progress, prompts = Watched(), world.prompts()
    answers = world.cascade().generate_batch(prompts, lam=3.0, progress=progress)
    assert progress.told == sorted(progress.told)
    spent = sum(
        len(world.scripts[NAMES.index(name)][prompt].token_ids)
        for prompt, answer in zip(prompts, answers, strict=True)
        for name in route(answer)
    )
    assert progress.told[-1] == (len(prompts), spent)
    assert 0 < progress.told[-2][0] < len(prompts)


def failing(
    world: Any, scripted: Callable[..., Any], answer: Callable[..., Any], *names: str
) -> list[Any]:
    """Stages of which some cannot finish any answer, however sure they were of its beginning."""
    broken = answer("rig", [-1e-6, -1e-6], "error")
    return [
        scripted(name, dict.fromkeys(script, broken) if name in names else script)
        for name, script in zip(NAMES, world.scripts, strict=True)
    ]


@pytest.mark.parametrize("names", [("small",), ("large",), ("small", "middle")])
def test_an_answer_that_could_not_be_finished_is_never_returned(
    world: Any,
    scripted: Callable[..., Any],
    answer: Callable[..., Any],
    names: tuple[str, ...],
) -> None:
    cascade = world.cascade(stages=failing(world, scripted, answer, *names))
    for lam in (0.0, 1.0, 10.0, 1000.0):
        answers = cascade.generate_batch(world.prompts()[:50], lam=lam)
        returned = [done for done in answers if done.stage in names]
        if "large" not in names:
            assert not returned
        # The last stage stands alone where the rule asked it at once: nothing else is at hand.
        assert all(route(done) == (done.stage,) and done.p_good == 0 for done in returned)
        assert all(done.p_good > 0 for done in answers if done.stage not in names)


def test_where_every_stage_fails_the_answer_says_so(
    world: Any, scripted: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    cascade = world.cascade(stages=failing(world, scripted, answer, *NAMES))
    done = cascade.generate("prompt 2", lam=0.5)
    assert sorted(route(done)) == sorted(NAMES)
    assert (done.p_good, done.completion.finish_reason) == (0.0, "error")
    assert (done.stage, done.stopped, done.text) == ("", "failed", "")


def test_deciding_costs_less_than_a_third_of_a_millisecond_a_request(world: Any) -> None:
    """Features, beliefs, decisions and all bookkeeping, in full batches; stages take no time."""
    cascade, prompts = world.cascade(), world.prompts()[:64]
    seconds = []
    for _ in range(9):
        begun = time.perf_counter()
        answers = cascade.generate_batch(prompts, lam=2.0)
        stages = sum({visit.seconds for answer in answers for visit in answer.trace})
        seconds.append((time.perf_counter() - begun - stages) / len(prompts))
    assert sum(len(answer.trace) for answer in answers) > 1.5 * len(prompts)
    assert sorted(seconds)[4] < 3e-4
