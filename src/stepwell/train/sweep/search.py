"""Which values to try next: a tree-structured Parzen estimator over the trials so far (optuna).

Owns the study, journal.log in the sweep's folder, and nothing else: what a trial came to is in the
sweep's own files, and the study is told before it is asked. A crash between the two loses nothing.
Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell.errors import ConfigError
from stepwell.train.sweep.axes import Axis, Choice, trial_name
from stepwell.train.sweep.folder import Plan, Trial

if TYPE_CHECKING:
    import optuna

JOURNAL: Final = "journal.log"
DIGITS: Final = 4  # of a proposed number: it becomes the name of a folder
MOST_REPEATS: Final = 50  # proposals that have been tried already, before all count as tried


def check_installed() -> None:
    """Nothing; raises ConfigError where optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError(
            "A search needs optuna, which is not installed.",
            fix='pip install "stepwell[sweep]", or use --grid.',
        ) from None


class Search:
    """Proposes the values of the next trial, and none once there are as many as were planned."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._journal, self._plan, self._axes = directory / JOURNAL, plan, plan.axes

    def propose(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Values that no trial has had. Called under the sweep's lock: studies take turns."""
        if len(trials) >= self._plan.trials:
            return None
        with quiet_optuna():
            study = self._study(seed=len(trials))
            self._tell(study, trials)
            return self._ask(study, {trial.name for trial in trials})

    def _study(self, seed: int) -> optuna.Study:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self._journal))),
            study_name="sweep",
            direction="minimize" if self._plan.goal == "min" else "maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            load_if_exists=True,
        )

    def _tell(self, study: optuna.Study, trials: Sequence[Trial]) -> None:
        """What the trials came to, as far as the study does not know."""
        import optuna

        running = optuna.trial.TrialState.RUNNING
        waiting = {each.user_attrs["name"]: each.number for each in study.trials if _is_ours(each)}
        known = {each.number for each in study.trials if each.state != running}
        for trial in trials:
            number = waiting.get(trial.name)
            if not trial.outcome or number is None or number in known:
                continue
            value = trial.metric(self._plan.metric)
            if math.isfinite(value):
                study.tell(number, value)
            else:
                study.tell(number, state=optuna.trial.TrialState.FAIL)

    def _ask(self, study: optuna.Study, tried: set[str]) -> dict[str, Any] | None:
        import optuna

        axes = {name: distribution(axis) for name, axis in self._axes.items()}
        for _ in range(MOST_REPEATS):
            asked = study.ask(axes)
            values = {name: _rounded(value) for name, value in asked.params.items()}
            if trial_name(values) not in tried:
                asked.set_user_attr("name", trial_name(values))
                return values
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return None


def distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    """The axis as optuna knows it."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.values)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """While this lasts optuna logs warnings only."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _is_ours(trial: optuna.trial.FrozenTrial) -> bool:
    return "name" in trial.user_attrs


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def no_more(_trials: Sequence[Trial]) -> Mapping[str, Any] | None:
    """None: a grid proposes nothing beyond the trials that it was set up with."""
    return None
