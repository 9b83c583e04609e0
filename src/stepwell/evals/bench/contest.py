"""The contest: every question about a model, asked of us and of the peers in turns.

Owns which question is asked with which weights and of whom, and how answers become rows. A peer is
started once for a model and its weights, and stays while they are measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from stepwell.errors import PeerError, PromptError
from stepwell.evals.bench.alone import ALONE
from stepwell.evals.bench.bars import BARS
from stepwell.evals.bench.figures import Row, make_row
from stepwell.evals.bench.hooks import hook_works
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.peer import KINDS, Peer, command_of
from stepwell.evals.bench.peers.conversation import FIRST_PROMPT, Setup
from stepwell.evals.bench.plan import FORMATS, WEIGHTS, BenchPlan, Question, Subject, Weights
from stepwell.evals.bench.turns import Contestant, rate, take_turns
from stepwell.evals.bench.work import Work

ROWS = (1, 16)
COMPILED = ((True, False), (False, False), (True, True))
"""Whether we and the peers compile the model that is trained."""


@dataclass
class Bench:
    """Measures models by a plan, beside peers: the Python of each, by name.

    versions: of the peers that were started, by name; filled while rows are made.
    """

    plan: BenchPlan
    questions: Sequence[Question]
    peers: Mapping[str, Path]
    versions: dict[str, str] = field(default_factory=dict)

    def rows(self, subject: Subject) -> Iterator[Row]:
        """Every row about a model, each as soon as it is measured."""
        for weights in FORMATS:
            works = [each for each in works_of(self.plan, weights) if self._asks(each.question)]
            trials = [
                each for each in ALONE if self._asks(each.question) and weights in each.weights
            ]
            if not (works or trials):
                continue
            ours = Ours(subject.directory, weights)
            if weights == "fp32":
                works += hook_works(ours, self.plan)
            yield from barred(self._compared(works, subject, ours))
            for trial in trials:
                yield from barred(trial.rows(subject, ours, self.plan))

    def _asks(self, question: Question) -> bool:
        return question in self.questions

    def _compared(self, works: Sequence[Work], subject: Subject, ours: Ours) -> Iterator[Row]:
        with ExitStack() as stack:
            peers = self._started(works, ours, stack)
            for work in works:
                yield from compared(work, subject.name, ours, peers, self.plan)

    def _started(
        self, works: Sequence[Work], ours: Ours, stack: ExitStack
    ) -> dict[str, Peer | str]:
        """The peers that have something to do; for one that does not start, why."""
        asked = {work.question for work in works}
        started: dict[str, Peer | str] = {}
        for name, python in self.peers.items():
            kind = KINDS[name]
            if ours.weights not in kind.weights or asked.isdisjoint(kind.questions):
                continue
            try:
                peer = Peer(name, command_of(name, python), setup_of(works, ours))
            except PeerError as error:
                started[name] = error.problem
                continue
            started[name] = stack.enter_context(peer)
            self.versions[name] = peer.version
        return started


def compared(
    work: Work, model: str, ours: Ours, peers: Mapping[str, Peer | str], plan: BenchPlan
) -> Iterator[Row]:
    """A row for each peer that is asked this, or one of ours alone where none is."""
    row = partial(make_row, work.question, work.case, model, work.unit)
    asked = {name: peer for name, peer in peers.items() if work.question in KINDS[name].questions}
    try:
        ours.check_length(work.length)
    except PromptError as error:
        yield row(error.problem)
        return
    running: list[Contestant] = [ours]
    running += [peer for peer in asked.values() if isinstance(peer, Peer)]
    figures = take_turns({who.name: partial(work.figure, who) for who in running}, plan)
    for name, peer in asked.items():
        theirs = peer if isinstance(peer, str) else figures[name]
        yield replace(row(figures[ours.name], name, theirs), note=work.note(name))
    if not asked:
        yield row(figures[ours.name])


def setup_of(works: Iterable[Work], ours: Ours) -> Setup:
    """What a peer is told, so that it runs the same model on as many threads."""
    return Setup(
        model=str(ours.directory.resolve()),
        weights=ours.weights,
        threads=torch.get_num_threads(),
        vocab_size=ours.model.config.vocab_size,
        length=max(work.length for work in works),
    )


def barred(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each with its bar where there is one: its own, else that of its place."""
    for row in rows:
        place = (row.question, row.case, row.model)
        bar = row.bar or BARS.get((*place, row.against)) or BARS.get((*place, ""))
        yield replace(row, bar=bar)


def works_of(plan: BenchPlan, weights: Weights) -> list[Work]:
    """The questions about a model with such weights that every contestant can be asked.

    Hooks, which take the model itself, are in `hook_works`.
    """
    if weights not in WEIGHTS:
        return []
    works = [_decode(plan, rows, weights) for rows in ROWS]
    works.append(_prefill(plan, weights))
    if weights == "bf16":
        works += [_batch(plan, weights), _load()]
        works += [_train(plan, ours, theirs) for ours, theirs in COMPILED]
    return works


def _decode(plan: BenchPlan, rows: int, weights: Weights) -> Work:
    prompt, new = plan.prompt_tokens, plan.new_tokens

    def figure(who: Contestant, seed: int) -> float:
        return rate(rows * (new - 1), who.measure(rows, prompt, new, seed).decode_s)

    case = f"{rows} row{'s' if rows > 1 else ''}, {weights}"
    return Work("decode", case, "tokens/s", prompt + new, figure)


def _prefill(plan: BenchPlan, weights: Weights) -> Work:
    prompt = plan.prefill_tokens

    def figure(who: Contestant, seed: int) -> float:
        return rate(prompt, who.measure(1, prompt, 1, seed).prefill_s)

    return Work("prefill", f"{prompt} tokens, {weights}", "tokens/s", prompt + 1, figure)


def _batch(plan: BenchPlan, weights: Weights) -> Work:
    requests = plan.mixed_requests
    tokens = sum(new for _, new in requests)

    def figure(who: Contestant, seed: int) -> float:
        return rate(tokens, who.batch(requests, seed))

    return Work("batch", weights, "tokens/s", max(map(sum, requests)), figure)


def _load() -> Work:
    def figure(who: Contestant, seed: int) -> float:
        return who.load(seed)

    return Work("load", "first token", "s", FIRST_PROMPT + 1, figure)


def _train(plan: BenchPlan, ours: bool, theirs: bool) -> Work:
    rows, length = plan.train_rows, plan.train_tokens

    def figure(who: Contestant, seed: int) -> float:
        compiled = ours if isinstance(who, Ours) else theirs
        return rate(rows * length, who.train(rows, length, seed, compiled=compiled))

    compiled = {(True, False): "ours compiled", (False, False): "eager", (True, True): "compiled"}
    case = f"{rows} x {length}, {compiled[ours, theirs]}"
    return Work("train", case, "tokens/s", length, figure)
