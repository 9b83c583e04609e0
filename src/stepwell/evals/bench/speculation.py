"""Does a draft pay? Whole answers with one, against the same model alone.

The answers have to be the same, token by token; where they are not, that is the row.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from stepwell.errors import StepwellError
from stepwell.evals.bench.bars import LOSSLESS
from stepwell.evals.bench.figures import Row, make_row
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.prompts import note_of, prompts_of
from stepwell.evals.bench.turns import rate, take_turns
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import Request, SamplingParams, TokenEvent
from stepwell.generate.sequence import Handle
from stepwell.generate.speculative import DraftSource
from stepwell.generate.verify import num_equal
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model

TEMPERATURES: Final = (0.0, 0.8)
ALONE: Final = "alone"


def speculation(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:
    """Tokens a second of answers with each drafter at each temperature, against none."""
    try:
        ours.check_length(2 * plan.answer_tokens)
        prompts = prompts_of(subject.directory, ours.model.config.vocab_size, plan)
        drafts = drafts_of(plan)
    except StepwellError as error:
        yield make_row("speculation", "answers", subject.name, "tokens/s", error.problem)
        return
    for temperature in TEMPERATURES:
        requests = requests_of(prompts, plan.answer_tokens, temperature)
        for row in compared(subject.name, ours.model, requests, drafts, plan):
            yield replace(row, case=f"{row.case}, temperature {temperature:g}")


def drafts_of(plan: BenchPlan) -> dict[str, DraftSource]:
    """Who drafts, by the name in the table."""
    drafts: dict[str, DraftSource] = {"lookup": "lookup"}
    if plan.draft is not None:
        drafts["drafter"] = load_model(plan.draft, weights="bf16")
    return drafts


def requests_of(
    prompts: Sequence[Sequence[int]], new_tokens: int, temperature: float
) -> list[Request]:
    """A request for each prompt, each with a seed of its own, for exactly so many tokens."""
    return [
        Request(
            tuple(ids),
            SamplingParams(
                temperature=temperature, max_new_tokens=new_tokens, seed=seed, ignore_eos=True
            ),
        )
        for seed, ids in enumerate(prompts)
    ]


def compared(
    name: str,
    model: Transformer,
    requests: Sequence[Request],
    drafts: Mapping[str, DraftSource],
    plan: BenchPlan,
) -> Iterator[Row]:
    """A row for each drafter. The answers of every turn are held against those of the model."""
    alone = Answering(model, requests)
    expected = alone.answers()
    sides = {ALONE: alone, **{each: Answering(model, requests, drafts[each]) for each in drafts}}
    turns = {each: partial(checked_rate, side, expected) for each, side in sides.items()}
    figures = take_turns(turns, plan)
    for each in drafts:
        against = (figures[each], ALONE, figures[ALONE])
        row = make_row("speculation", each, name, "tokens/s", *against)
        gained = "" if row.problem else f"{sides[each].tokens_a_step:.2f} tokens a step"
        note = ", ".join(filter(None, (gained, note_of(plan))))
        yield replace(row, bar=LOSSLESS if plan.text else None, note=note)


class Answering:
    """Answers requests one after the other, with a draft or alone."""

    def __init__(
        self, model: Transformer, requests: Sequence[Request], draft: DraftSource | None = None
    ) -> None:
        self._engine = InferenceEngine(model, max_rows=1)
        self._requests, self._draft = requests, draft
        self._tokens = self._steps = 0

    @property
    def tokens_a_step(self) -> float:
        """Tokens that a step behind the first token of an answer has brought, on average."""
        return self._tokens / self._steps

    def answers(self) -> list[list[int]]:
        """The ids of every answer. Raises what ended one early."""
        return [self._answer(request) for request in self._requests]

    def _answer(self, request: Request) -> list[int]:
        """The ids of one; its prompt is found in no cache, though it may have been read before."""
        unseen = replace(request, cache_salt=secrets.token_hex(8))
        handle = self._engine.submit(unseen, draft=self._draft)
        steps: list[list[int]] = []
        while not handle.is_finished:
            self._engine.step()
            steps.append(drained(handle))
        yields = [len(ids) for ids in steps if ids][1:]
        self._tokens, self._steps = self._tokens + sum(yields), self._steps + len(yields)
        return [token_id for ids in steps for token_id in ids]


def drained(handle: Handle) -> list[int]:
    """The ids that wait in the handle. Raises the error that it ended with."""
    ids = []
    for event in handle.drain():
        if isinstance(event, TokenEvent):
            ids.append(event.token_id)
        elif event.error is not None:
            raise event.error
    return ids


def checked_rate(side: Answering, expected: Sequence[Sequence[int]], _round: int) -> float:
    """Tokens a second of a turn. Raises StepwellError where an answer is not the expected one."""
    begun = time.perf_counter()
    answers = side.answers()
    seconds = time.perf_counter() - begun
    check_equal(answers, expected)
    return rate(sum(map(len, answers)), seconds)


def check_equal(answers: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> None:
    """Raises StepwellError, with the place, where the answers differ from those expected."""
    for number, (got, wanted) in enumerate(zip(answers, expected, strict=True)):
        if got != wanted:
            raise StepwellError(
                f"Answer {number} is not that of the model alone, from token"
                f" {num_equal(got, wanted)} on."
            )
