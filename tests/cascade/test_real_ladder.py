"""A ladder whose large stage is a server that the ladder file launches: vLLM and llama.cpp.

Skipped where their environments are not installed; see support/real_servers.py. Minutes long.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from support.processes import free_port, is_gone, wait_until
from support.question_ladders import SAMPLING, prompts, question_ladder
from support.real_servers import COMMANDS, SERVED, python_of_peer

from stepwell.cascade.answer import Answer
from stepwell.cascade.collect import Collected
from stepwell.cascade.costs import Costs
from stepwell.cascade.ladder import LadderConfig, PolicyConfig
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.prepare import Preparation, first_prompts
from stepwell.cascade.stages.load import close_stages, load_stages
from stepwell.generate.text import TextGenerator

pytestmark = pytest.mark.slow

QUESTIONS = 200
LAMBDAS = (0.0, 0.5, 1.0, 2.0, 1000.0)
ANSWERED_BEFORE_IT_DIES = 5


@dataclass
class Live:
    """A cascade that was prepared and loaded from its file, beside its two models run by us."""

    kind: str
    cascade: Cascade
    collected: Collected
    own: dict[str, TextGenerator]

    @property
    def group(self) -> int:
        """The process group of the server."""
        return group_of(self.cascade.stages[-1])

    def texts(self, stage: str, asked: Sequence[str]) -> list[str]:
        """What the model of a stage says by itself, greedily, run by us."""
        return [answer.text for [answer] in self.own[stage].generate_batch(asked, **SAMPLING)]


def group_of(stage: Any) -> int:
    assert stage._launcher._process is not None
    return int(stage._launcher._process.pid)


def told(kind: str, text: str) -> None:
    print(f"{kind}: {text}", file=sys.stderr)


def prepare(kind: str, file: Path) -> Collected:
    """Asks, measures and fits as the commands do; the server has ended afterwards."""
    config = LadderConfig.read(file)
    begun = time.monotonic()
    stages = load_stages(config, file.parent)
    told(kind, f"started in {time.monotonic() - begun:.0f} s")
    group = group_of(stages[-1])
    try:
        preparation = Preparation(file, config, stages)
        questions = preparation.questions(QUESTIONS)
        collected = preparation.collect(questions)
        costs = preparation.calibrate(first_prompts(questions, config.serving.max_rows))
        preparation.fit(collected, costs)
    finally:
        close_stages(stages)
    assert wait_until(lambda: is_gone(group))
    shares = ", ".join(f"{share:.0%}" for share in collected.good.mean(axis=0))
    rows = config.serving.max_rows
    each = zip(costs.stages, costs.seconds(rows), costs.saved(rows), strict=True)
    measured = ", ".join(
        f"{stage.name} {1e3 * anew:.2f} ms ({1e3 * saved:.2f} less from a draft that stays)"
        for stage, anew, saved in each
    )
    told(kind, f"right: {shares} of {len(collected)}; an answer takes {measured}")
    return collected


@pytest.fixture(scope="module", params=COMMANDS)
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """Each server in turn: the ladder prepared, loaded, and closed at the end."""
    kind = str(request.param)
    python = python_of_peer(kind)
    folder, port = tmp_path_factory.mktemp("live"), free_port()
    large = {
        "server": f"http://127.0.0.1:{port}/v1",
        "model": SERVED,
        "tokenizer": "large",
        "parameters": 1e5,
    }
    file = question_ladder(folder, count=2 * QUESTIONS, large=large)
    plain = LadderConfig.read(file).model_dump(mode="json", by_alias=True)
    plain["stages"][1]["launch"] = COMMANDS[kind](python, folder / "large", port)
    LadderConfig.parse(plain).write(file)
    collected = prepare(kind, file)
    own = {name: TextGenerator.load(folder / name) for name in ("small", "large")}
    with Cascade.load(file) as cascade:
        group = group_of(cascade.stages[-1])
        yield Live(kind, cascade, collected, own)
    assert wait_until(lambda: is_gone(group))


def wrong(answers: Sequence[Answer], small: Sequence[str], large: Sequence[str]) -> list[str]:
    """Where a stage's answer, or the one returned, is not what its model says by itself."""
    found = []
    for answer, *own in zip(answers, small, large, strict=True):
        by_stage = dict(zip(("small", "large"), own, strict=True))
        said = [(visit.stage, visit.answer) for visit in answer.trace if visit.fault is None]
        said.append((answer.stage, answer.text))
        found += [
            f"{stage}: {text!r} for {by_stage[stage]!r}"
            for stage, text in said
            if text != by_stage[stage]
        ]
    return found


def test_the_server_says_what_our_engine_says(live: Live) -> None:
    asked = live.collected.prompts
    assert list(live.collected.texts[-1]) == live.texts("large", asked)
    assert live.collected.good[:, -1].mean() == 1.0
    assert 0.2 < live.collected.good[:, 0].mean() < 0.8


def with_known_costs(live: Live) -> Cascade:
    """The cascade by costs at which both stages, and verifying, are worth it anywhere."""
    fitted, sizes = live.cascade.fitted, live.cascade.fitted.costs.stages[0].seconds
    small, large = (
        replace(
            stage,
            seconds=dict.fromkeys(sizes, seconds),
            verified=dict.fromkeys(sizes, seconds / 2),
            refused=dict.fromkeys(sizes, seconds),
        )
        for stage, seconds in zip(fitted.costs.stages, (0.1, 1.0), strict=True)
    )
    known = replace(fitted, costs=Costs((small, large)))
    return Cascade(live.cascade.config, live.cascade.stages, known)


def test_an_escalated_answer_is_the_large_models_own_greedy_text(live: Live) -> None:
    cascade = with_known_costs(live)
    asked = prompts(2 * QUESTIONS)[QUESTIONS:]
    small, large = (live.texts(stage, asked) for stage in ("small", "large"))
    depth: list[float] = []
    drafted: Counter[str] = Counter()
    accepted = proposed = 0
    for lam in LAMBDAS:
        answers = cascade.generate_batch(asked, lam=lam)
        assert wrong(answers, small, large) == []
        depth.append(fmean(answer.trace[-1].stage == "large" for answer in answers))
        same = fmean(answer.text == own for answer, own in zip(answers, large, strict=True))
        cost = fmean(answer.cost for answer in answers)
        told(
            live.kind,
            f"lambda {lam:g}: {depth[-1]:.0%} escalated, {same:.0%} as the large model says it,"
            f" mean cost {cost:.3f}",
        )
        for answer in answers:
            if [visit.stage for visit in answer.trace] != ["small", "large"]:
                continue
            before, visit = answer.trace
            drafted[visit.mode] += 1
            assert visit.accepted_tokens <= visit.new_tokens
            if visit.mode == "verified":
                accepted += visit.accepted_tokens
                proposed += before.new_tokens
    told(live.kind, f"{dict(drafted)}, {accepted} of {proposed} drafted tokens stayed")
    assert depth[0] < depth[-1] == max(depth)
    assert drafted["verified"] > 10
    assert 0 < accepted < proposed
    assert wrong(answers, small, small)  # negative control


def test_without_verifying_the_answers_are_the_same(live: Live) -> None:
    config = live.cascade.config.changed(policy=PolicyConfig(mode="anew"))
    asked = prompts(2 * QUESTIONS)[QUESTIONS : QUESTIONS + 40]
    anew = Cascade(config, live.cascade.stages, live.cascade.fitted)
    small, large = (live.texts(stage, asked) for stage in ("small", "large"))
    for lam in LAMBDAS:
        answers = anew.generate_batch(asked, lam=lam)
        assert wrong(answers, small, large) == []
        assert {visit.mode for answer in answers for visit in answer.trace} == {"anew"}


class Killer:
    """Kills the server as soon as it has answered a few prompts of a batch."""

    def __init__(self, live: Live) -> None:
        self.group, self.guard, self.answered = live.group, live.cascade._guards[-1], 0
        self.calls = self.guard.calls

    def update(self, finished: int, tokens: int) -> None:
        """Told of each answer of a server, of each step of ours."""
        self.answered += self.guard.calls > self.calls
        if self.answered == ANSWERED_BEFORE_IT_DIES:
            os.killpg(self.group, signal.SIGKILL)


def test_a_server_that_dies_costs_no_prompt_its_answer(live: Live) -> None:  # the last: it is dead
    asked = prompts(2 * QUESTIONS)[QUESTIONS:]
    small, large = (live.texts(stage, asked) for stage in ("small", "large"))
    killer = Killer(live)
    begun = time.monotonic()
    for turn, faults in enumerate(({"error", "gone", "down"}, {"gone", "down"}, {"down"})):
        progress = killer if turn == 0 else None
        answers = live.cascade.generate_batch(asked, lam=LAMBDAS[-1], progress=progress)
        assert wrong(answers, small, large) == []
        assert not any(answer.stopped == "failed" for answer in answers)
        failed = [visit for each in answers for visit in each.trace if visit.fault is not None]
        kinds = dict(Counter(visit.fault for visit in failed))
        told(live.kind, f"faults at {len(asked)} prompts: {kinds}, {failed[0].problem}")
        assert failed
        assert {visit.stage for visit in failed} == {"large"}
        assert {visit.fault for visit in failed} <= faults
        assert all("cannot be reached" in visit.problem for visit in failed)
        heard = Counter(visit.stage for each in answers for visit in each.trace) - Counter(
            visit.stage for visit in failed
        )
        assert heard["small"] + heard["large"] >= len(asked)
        assert heard["large"] >= ANSWERED_BEFORE_IT_DIES if turn == 0 else not heard["large"]
    assert time.monotonic() - begun < 30
    assert live.cascade.counters["large", "gone"] > 0
