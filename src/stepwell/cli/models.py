"""`stepwell models`: the run folders and model directories here, and how good each is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich import box
from rich.table import Table
from rich.text import Text

from stepwell.cli.console import OutputFlags
from stepwell.cli.numbers import short
from stepwell.config import read_json, read_yaml
from stepwell.errors import StepwellError, UsageError

DEEPEST: Final = 3  # folders below the one that is listed
CONFIG, RUN = "config.json", "run.yaml"


@dataclass(frozen=True)
class Listed:
    """A model or a run. `step` of `steps` is that of its best weights; `problem` what is wrong."""

    directory: str
    family: str = ""
    parameters: int | None = None
    task: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    problem: str = ""


def models(
    *,
    runs: Annotated[Path | None, Parameter(metavar="PATH")] = None,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> None:
    """List run folders and model directories, with size, task and validation loss.

        stepwell models
        stepwell models --runs experiments --json

    Parameters
    ----------
    runs
        The folder to look in; by default STEPWELL_RUNS, or ./runs.
    """
    folder = runs_folder(runs)
    with output.open() as opened:
        found = [described(directory) for directory in sorted(model_directories(folder))]
        opened.result([asdict(each) for each in found], models_table(found))
        if not found:
            opened.note(f"No model in {folder} yet; `stepwell demo` trains three.")


def runs_folder(given: Path | None) -> Path:
    """The folder of runs that was given, else that of the environment. Raises UsageError."""
    folder = given or Path(os.environ.get("STEPWELL_RUNS", "runs"))
    if not folder.is_dir():
        raise UsageError(
            f"There is no folder {folder}.", fix="give --runs, or make a first run: stepwell demo."
        )
    return folder


def model_directories(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The directories at or below `folder` that hold a model or a run; checkpoints left out."""
    if (folder / CONFIG).is_file() or (folder / RUN).is_file():
        yield folder
        return
    if depth == DEEPEST:
        return
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith((".", "checkpoint-")):
            yield from model_directories(child, depth + 1)


def described(directory: Path) -> Listed:
    """What the files of a directory say about its model; a fault in them is a problem to show."""
    try:
        run = _mapping(read_yaml(directory / RUN)) if (directory / RUN).exists() else {}
        manifest = _read(directory / "manifest.json")
        return Listed(
            directory=str(directory),
            **_shape(directory),
            task=str(_mapping(run.get("task")).get("name", "")),
            step=manifest.get("step"),
            steps=run.get("steps"),
            loss=_mapping(manifest.get("metrics")).get("loss"),
        )
    except StepwellError as error:
        return Listed(directory=str(directory), problem=error.problem)


def models_table(found: list[Listed]) -> Table:
    """The list for people; the lowest loss of each task is bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, justify in (("model", "left"), ("family", "left"), ("parameters", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("task", overflow="fold")
    table.add_column("step", justify="right")
    table.add_column("validation loss", justify="right")
    for each in found:
        if each.problem:
            table.add_row(each.directory, Text(each.problem, style="red"))
            continue
        losses = [other.loss for other in found if other.task == each.task and other.loss]
        best = each.loss is not None and len(losses) > 1 and each.loss == min(losses)
        table.add_row(
            Text(each.directory, style="cyan"),
            each.family,
            "" if each.parameters is None else short(each.parameters),
            each.task,
            _steps(each),
            Text("" if each.loss is None else f"{each.loss:.4f}", style="bold" if best else ""),
        )
    return table


def _shape(directory: Path) -> dict[str, Any]:
    """Family and parameters as config.json says; nothing before the first weights are there."""
    path = directory / CONFIG
    if not path.exists():
        return {}
    from stepwell.model.config_json import read_config

    config = read_config(_read(path), where=str(path))
    return {"family": config.family, "parameters": config.num_parameters}


def _steps(each: Listed) -> str:
    if each.steps is None:
        return ""
    return f"{each.step or 0:,} of {each.steps:,}"


def _read(path: Path) -> dict[str, Any]:
    return _mapping(read_json(path)) if path.exists() else {}


def _mapping(values: Any) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {}
