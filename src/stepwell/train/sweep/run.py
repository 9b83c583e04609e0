"""`sweep`: many runs of one configuration with some fields varied, over several processes.

    found = sweep(config, grid={"num_layers": [1, 2], "lr": [1e-3, 3e-3]}, workers=2)

Owns the order of things: check, set up the folder, work, draw. The same call goes on where an
earlier one was stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwell.config import fingerprint
from stepwell.errors import ConfigError, TrainingError, UsageError
from stepwell.train.compare import best_of
from stepwell.train.config import TrainerConfig
from stepwell.train.sweep.axes import Axis, field_path, grid_values, parse_axis
from stepwell.train.sweep.crew import Crew, devices_of
from stepwell.train.sweep.folder import SWEEP_FILE, Goal, Plan, SweepFolder
from stepwell.train.sweep.page import write_sweep
from stepwell.train.sweep.result import SweepResult
from stepwell.train.sweep.search import check_installed
from stepwell.train.sweep.watching import Alone, Drawing, SweepProgress, Unwatched
from stepwell.train.sweep.work import work
from stepwell.train.trainer import Trainer

Axes = Mapping[str, str | Sequence[Any]]


def sweep(
    config: TrainerConfig,
    *,
    grid: Axes | None = None,
    search: Axes | None = None,
    trials: int = 20,
    workers: int | None = None,
    metric: str = "loss",
    goal: Goal | None = None,
    trainer: type[Trainer] = Trainer,
    fresh: bool = False,
    progress: SweepProgress | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> SweepResult:
    """The result of training `config` with every combination of a grid, or searched values.

    grid, search: fields by name, each with its values, or with a text such as "log:1e-4..1e-2".
    trials: how many a search takes. workers: processes, each on its own cores or its own device of
    config.device; by default one for each GPU. metric: of the best weights; goal: "min" or "max",
    by default "max" for accuracies. Runs and the folder of the sweep lie under config.runs, the
    latter named by config.run_name.

    Raises UsageError for an axis that cannot be, ConfigError where the folder is that of another
    sweep, KeyboardInterrupt once a stop was requested and every worker has saved.
    """
    plan = make_plan(config, grid or {}, search or {}, trials, metric, goal)
    devices = devices_of(config.device)
    count = len(devices) if workers is None else workers
    check(plan, count, trainer)
    folder = SweepFolder(sweep_directory(config, plan))
    if fresh:
        clear(folder)
    folder.set_up(plan, grid_values(plan.axes) if plan.grid else [])
    watched = Drawing(folder, progress or Unwatched())
    watched.start(folder, count)
    try:
        if count == 1:
            watcher = Alone(watched)
            place = {"threads": config.threads, "device": devices[0]}
            work(folder, watcher, stop_requested, trainer, **place)
        else:
            Crew(
                folder,
                workers=count,
                devices=devices,
                threads=config.threads,
                trainer=trainer,
                progress=watched,
            ).run(stop_requested)
    finally:
        watched.finish()
    result = SweepResult.read(folder.directory)
    write_sweep(result)
    return result


def make_plan(
    config: TrainerConfig, grid: Axes, search: Axes, trials: int, metric: str, goal: Goal | None
) -> Plan:
    """What the sweep is, its axes checked. Raises UsageError."""
    if bool(grid) == bool(search):
        problem = "A sweep varies fields by a grid or by a search, and not by both."
        raise UsageError(problem, fix="give one of grid (--grid) and search (--search).")
    if search and trials < 1:
        raise UsageError(f"trials is {trials}, expected 1 or more.")
    axes = {name: parse_axis(name, given) for name, given in (grid or search).items()}
    check_fields(config, axes)
    plain = {name.replace("-", "_"): axis.plain for name, axis in axes.items()}
    return Plan(
        base=config.plain(),
        grid=plain if grid else {},
        search=plain if search else {},
        trials=trials if search else 0,
        metric=metric,
        goal=goal or best_of(metric),
    )


def check_fields(config: TrainerConfig, axes: Mapping[str, Axis]) -> None:
    """Nothing; raises UsageError where an axis has no field, or two have the same."""
    paths: dict[tuple[str, ...], str] = {}
    for name in axes:
        path = field_path(name, config)
        if path in paths:
            raise UsageError(
                f"{paths[path]} and {name} are the same field, {'.'.join(path)}.",
                fix="name it once, with all its values.",
            )
        paths[path] = name


def check(plan: Plan, workers: int, trainer: type[Trainer]) -> None:
    """Nothing; raises UsageError or ConfigError where the sweep cannot be run like this."""
    if workers < 1:
        raise UsageError(f"workers is {workers}, expected 1 or more.")
    if workers > 1 and "." in trainer.__qualname__:
        raise UsageError(
            f"{trainer.__qualname__} is not at the top of its module, where workers look for it.",
            fix="move it there, or use workers=1.",
        )
    if plan.search:
        check_installed()


def sweep_directory(config: TrainerConfig, plan: Plan) -> Path:
    """The folder of the sweep, by default named after its task and a hash of what it is."""
    name = config.run_name or f"sweep-{config.task.name}-{fingerprint(plan.fixed())[:8]}"
    return config.runs / name


def clear(folder: SweepFolder) -> None:
    """Removes a sweep with its trials.

    Raises ConfigError where the folder is no sweep, TrainingError where a process works on it.
    """
    if not folder.directory.exists() or not any(folder.directory.iterdir()):
        return
    if not (folder.directory / SWEEP_FILE).exists():
        raise ConfigError(
            f"{folder.directory} is not empty and holds no {SWEEP_FILE}: it is no sweep.",
            fix="give another name.",
        )
    with folder.locked():
        if any(folder.is_running(trial) for trial in folder.trials()):
            raise TrainingError(
                f"Another process works on {folder.directory}.",
                fix="wait for it, or give another name.",
            )
        for path in sorted(folder.directory.iterdir(), key=lambda path: path.name == SWEEP_FILE):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".sweep.lock":
                path.unlink()
