"""One trial of an evaluation: a ladder of one seed, from its file to what it is worth.

    ladder.yaml  models/  ladder.collected/  ladder.fitted/    as `stepwell cascade` leaves them
    shifted.yaml  shifted.collected/  shifted.fitted/          the same for harder questions
    results.json  outcomes.safetensors                         see protocol_records

Owns the order of the steps and which of them a second run finds done. What is measured live is in
protocol_live, what is replayed in cascade.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np

from stepwell.cascade.build import trainer_config
from stepwell.cascade.collect import Collected
from stepwell.cascade.costs import Costs
from stepwell.cascade.fitted import Fitted
from stepwell.cascade.ladder import LadderConfig
from stepwell.cascade.pipeline import Cascade
from stepwell.cascade.prepare import Preparation, first_prompts
from stepwell.cascade.rule.paths import IntArray
from stepwell.cascade.rule.tuning import LAMBDAS
from stepwell.cascade.stage import Stage
from stepwell.cascade.stages.load import close_stages, load_stages
from stepwell.config import fingerprint
from stepwell.errors import CascadeError
from stepwell.evals.cascade import LADDER, ORACLE, Bench, Comparison, compare
from stepwell.evals.gates import by_depth, gates, shares_won
from stepwell.evals.live import Clock
from stepwell.evals.protocol_live import Asked, Live, Pass, measure_live
from stepwell.evals.protocol_records import (
    Arrays,
    CalibrationRow,
    Certificate,
    Shift,
    TrialResult,
    pack,
    read_trial,
    write_trial,
)
from stepwell.evals.protocol_tasks import Arena
from stepwell.tasks.questions import Questions
from stepwell.train.trainer import Trainer

LADDER_FILE: Final = "ladder.yaml"
SHIFTED_FILE: Final = "shifted.yaml"

State = Literal["begun", "going on", "ended", "kept"]


@dataclass(frozen=True)
class Event:
    """What an evaluation is at: a step of a trial.

    state: "kept" where an earlier run had done it. done, total: how far, where it is counted.
    seconds: of the step, once it has ended. text: what there is to say of it.
    """

    task: str
    seed: int
    step: str
    state: State
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    text: str = ""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Prepared:
    """A ladder that was fitted, with its questions and all stages' answers to them."""

    preparation: Preparation
    questions: Questions
    collected: Collected
    fitted: Fitted

    def places(self, name: str) -> IntArray:
        """The numbers of the questions of one split."""
        return np.arange(len(self.collected))[self.preparation.rows(self.collected)[name]]

    def split(self, name: str) -> Collected:
        """The answers to the questions of one split."""
        return self.collected.take(self.places(name))

    def asked(self, name: str) -> Asked:
        """The questions of one split."""
        rows = self.places(name).tolist()
        items = [self.questions.items[row] for row in rows]
        graders = tuple(item.grade for item in items)
        if self.preparation.config.questions.checker == "agreement":
            graders = tuple(self.collected.texts[-1][row].__eq__ for row in rows)
        prompts = tuple(item.prompt for item in items)
        return Asked(prompts, graders, self.collected.weights[rows])


@dataclass
class Trial:
    """The trial of one seed in a directory of its own. seconds: of each step of this run."""

    arena: Arena
    seed: int
    directory: Path
    num_questions: int
    on_event: OnEvent
    clock: Clock = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> tuple[TrialResult, Arrays]:
        """What the trial finds, or found before."""
        config = self.arena.ladder(self.seed)
        plain = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        asked = fingerprint([self.arena.name, self.seed, self.num_questions, plain])
        known = read_trial(self.directory, asked)
        if known is not None:
            self._tell("trial", "kept")
            return known
        self._write_ladders(config)
        self._train(config)
        stages = load_stages(config, self.directory)
        try:
            result, arrays = self._evaluate(config, stages, asked)
        finally:
            close_stages(stages)
        return result, arrays

    def _write_ladders(self, config: LadderConfig) -> None:
        names = [LADDER_FILE, *([SHIFTED_FILE] if self.arena.shifted else [])]
        for name in names:
            path = self.directory / name
            if path.exists() and LadderConfig.read(path) != config:
                raise CascadeError(
                    f"{path} is another ladder than that of this evaluation.",
                    fix="delete that folder, or give another.",
                )
            config.write(path)

    def _train(self, config: LadderConfig) -> None:
        """Each stage's run, where it is not finished."""
        for stage in config.stages:
            if stage.train is None:
                continue
            told = _TrainingTold(self, f"train {stage.name}")
            with self._step(told.step) as say:
                Trainer(trainer_config(stage, self.directory)).train(progress=told)
                say("" if told.began else "finished before")

    def _evaluate(
        self, config: LadderConfig, stages: list[Stage], asked: str
    ) -> tuple[TrialResult, Arrays]:
        """Fit and measure; leaves the results."""
        ladder = Preparation(self.directory / LADDER_FILE, config, stages)
        prepared = self._prepare(ladder, self.arena.questions, self.num_questions)
        cascade = Cascade(config, stages, prepared.fitted)
        calibration, test = prepared.split("calibration"), prepared.split("test")
        with self._step("replay rules"):
            comparison = compare(cascade, calibration, test)
        bench = Bench(cascade, calibration, test)
        with self._step("run live") as say:
            live = measure_live(cascade, bench, prepared.asked("test"), clock=self.clock, told=say)
        shift = self._shift(prepared, cascade)
        arrays = {**replay_arrays(comparison, cascade), **live.arrays}
        payload, digest = pack(arrays)
        result = self._result(prepared, comparison, live, shift, (asked, digest))
        write_trial(self.directory, result, payload)
        return result, arrays

    def _result(
        self,
        prepared: Prepared,
        comparison: Comparison,
        live: Live,
        shift: Shift | None,
        digests: tuple[str, str],
    ) -> TrialResult:
        """All that was found, in one value; digests are those of what was asked and the arrays."""
        test, collected, fitted = prepared.split("test"), prepared.collected, prepared.fitted
        parts = prepared.preparation.rows(collected)
        floor = comparison.row(ORACLE).batched
        labels = test.good, test.weights, test.depths
        return TrialResult(
            task=self.arena.name,
            seed=self.seed,
            asked=digests[0],
            arrays=digests[1],
            batch=comparison.batch,
            stages=tuple(stage.name for stage in prepared.preparation.stages),
            counts={name: len(prepared.places(name)) for name in parts},
            gates=gates(*labels, fitted.costs, comparison.batch, floor),
            won=shares_won(test.good, test.weights),
            by_depth=by_depth(collected.good, collected.depths),
            rules=comparison.rows,
            curves=tuple(curve.name for curve in comparison.curves),
            exchange=comparison.exchange,
            lam=_finite(fitted.lambda_for(prepared.preparation.config)),
            live=live.rows,
            lambdas=live.lambdas,
            budgets=live.budgets,
            latency=live.latency,
            deciding=live.deciding,
            calibration=tuple(map(CalibrationRow.of, comparison.reliability)),
            gains=tuple(map(CalibrationRow.of, comparison.gains)),
            acceptance=live.acceptance,
            shift=shift,
            certificate=certificate_of(fitted, live.served, test),
            seconds=dict(self.seconds),
        )

    def _prepare(
        self,
        preparation: Preparation,
        asking: Callable[[int, int], Questions] | None,
        count: int,
        costs: Costs | None = None,
        suffix: str = "",
    ) -> Prepared:
        """Collect, calibrate (but for costs that are given) and fit."""
        questions = preparation.questions(count) if asking is None else asking(self.seed, count)
        step, total = f"collect{suffix}", len(questions)
        with self._step(step):
            collected = preparation.collect(
                questions, lambda done: self._tell(step, "going on", done=done, total=total)
            )
        if costs is None:
            with self._step("calibrate"):
                rows = preparation.config.serving.max_rows
                costs = preparation.costs() or preparation.calibrate(first_prompts(questions, rows))
        with self._step(f"fit{suffix}"):
            fitted = preparation.fit(collected, costs)
        return Prepared(preparation, questions, collected, fitted)

    def _shift(self, prepared: Prepared, cascade: Cascade) -> Shift | None:
        """The fitted rules on harder questions, beside one that is fitted on such questions.

        Costs are those measured before, so that all rows have the same unit.
        """
        if self.arena.shifted is None:
            return None
        file, stages = self.directory / SHIFTED_FILE, list(cascade.stages)
        preparation = Preparation(file, cascade.config, stages)
        count, costs = self.num_questions // 2, prepared.fitted.costs
        harder = self._prepare(preparation, self.arena.shifted, count, costs, ", harder")
        test = harder.split("test")
        with self._step("replay rules, harder"):
            before = compare(cascade, prepared.split("calibration"), test)
            refitted = Cascade(cascade.config, stages, harder.fitted)
            after = compare(refitted, harder.split("calibration"), test)
        return Shift(
            len(test),
            before.rows,
            after.row(LADDER),
            tuple(map(CalibrationRow.of, before.reliability)),
            tuple(map(CalibrationRow.of, after.reliability)),
        )

    @contextmanager
    def _step(self, step: str) -> Iterator[Callable[[str], None]]:
        """Tells when a step begins and ends; what the block says goes with it."""
        said: list[str] = []

        def say(text: str) -> None:
            said[:] = [text]
            self._tell(step, "going on", text=text)

        self._tell(step, "begun")
        start = self.clock()
        yield say
        self.seconds[step] = self.clock() - start
        self._tell(step, "ended", seconds=self.seconds[step], text="".join(said))

    def _tell(
        self,
        step: str,
        state: State,
        *,
        done: int = 0,
        total: int = 0,
        seconds: float = 0.0,
        text: str = "",
    ) -> None:
        self.on_event(Event(self.arena.name, self.seed, step, state, done, total, seconds, text))


class _TrainingTold:
    """A trainer's progress as events."""

    def __init__(self, trial: Trial, step: str) -> None:
        self._tell, self.step = partial(trial._tell, step, "going on"), step
        self._total = 0
        self.began = False

    def start(self, total: int, description: str) -> None:  # noqa: ARG002
        """A run of `total` steps begins, or goes on."""
        self._total, self.began = total, True

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done."""
        text = f"loss {values['loss']:.4f}" if "loss" in values else ""
        self._tell(done=step, total=self._total, text=text)

    def finish(self) -> None:
        """Nothing: the step's own end is told."""


def replay_arrays(comparison: Comparison, cascade: Cascade) -> Arrays:
    """What each rule did, by question: rules [R, N], and each curve's settings [S, N].

    Those of the ladder are the lambdas [S].
    """
    flops = cascade.fitted.costs.flops()
    arrays = {
        "weights": comparison.weights,
        "lambdas": np.array(LAMBDAS),
        "rule_good": np.stack([rule.good for rule in comparison.replays]),
        "rule_cost": np.stack([rule.cost for rule in comparison.replays]),
        "rule_flops": np.stack([rule.runs @ (flops / flops[-1]) for rule in comparison.replays]),
    }
    for number, curve in enumerate(comparison.curves):
        arrays[f"curve_{number}_cost"] = curve.cost
        arrays[f"curve_{number}_good"] = curve.good
    return arrays


def certificate_of(fitted: Fitted, served: Pass, test: Collected) -> Certificate:
    """What is certified, and the excess loss of what was served live."""
    lost = np.maximum(test.good[:, -1] - served.good, 0.0)
    excess = float(np.average(lost, weights=test.weights))
    held = fitted.certificate
    if held is None:
        return Certificate(None, None, None, None, "nothing was certified", excess)
    words = f"{held.failures} of {held.prompts:,} questions lost"
    if not held.certified:
        words = f"always the largest: no rule passed on {held.prompts:,} questions"
    return Certificate(held.certified, held.epsilon, held.delta, held.lam, words, excess)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
