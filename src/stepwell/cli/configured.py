"""A training configuration from what was typed: a file, --set, a preset, and flags.

The file comes first, then --set, then flags: the later counts. Owns the flags of training and this
order. What a field may hold is the configuration's own business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Group, Parameter

from stepwell.cli.flags import Flag, given_values, model_flags
from stepwell.cli.words import option
from stepwell.config import merge, read_yaml
from stepwell.errors import ConfigError, UsageError, suggest
from stepwell.model.config import ModelConfig
from stepwell.model.presets import presets
from stepwell.tasks import TASKS, Task, task_from_plain
from stepwell.train.config import LoraConfig, OptimizerConfig, TrainerConfig

DEFAULT_PRESET: Final = "tiny"

BY_THE_TASK: Final = ("vocab_size", "bos_id", "eos_id", "pad_id")
"""Fields of a model that its task's tokenizer decides."""

TRAINING = Group("Training", sort_key=20)
OPTIMIZER = Group("Optimizer", sort_key=21)
LORA = Group("LoRA", "One of these learns changes of low rank and nothing else.", sort_key=21)
MODEL = Group("Model", "Sizes that are not given are those of the preset.", sort_key=22)
ALIASES: Final = {"precision": ("--dtype", "--precision")}


@Parameter(name="*")
@dataclass(frozen=True)
class StartFlags:
    """What a configuration begins with, before the flags of its fields."""

    preset: Annotated[str | None, Parameter(choices=tuple(presets))] = None
    """Shape of the model to begin with; tiny where nothing is given."""
    config: Annotated[Path | None, Parameter(metavar="PATH")] = None
    """A run.yaml; --set and flags change it."""
    assignments: Annotated[
        tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE", negative=())
    ] = ()
    """Sets a field by its path, such as optimizer.lr=3e-4; may be repeated."""


def training_flags(kinds: Sequence[type[Task]]) -> list[Flag]:
    """The flags of a trainer, its optimizer, LoRA and its model, and those of these tasks."""
    nested = ("model", "task", "optimizer", "lora")
    return [
        *task_flags(kinds),
        *model_flags(TrainerConfig, TRAINING, without=nested, names=ALIASES),
        *model_flags(OptimizerConfig, OPTIMIZER, at=("optimizer",)),
        *lora_flags(),
        *model_flags(ModelConfig, MODEL, at=("model",), without=BY_THE_TASK, show_defaults=False),
    ]


def lora_flags() -> list[Flag]:
    """The flags of LoRA: --lora-rank and so on."""
    names = {name: (f"--lora-{name}",) for name in LoraConfig.model_fields}
    return model_flags(LoraConfig, LORA, at=("lora",), names=names)


def task_flags(kinds: Sequence[type[Task]]) -> list[Flag]:
    """The flags of these tasks; a flag of the same name in several of them is one."""
    found: dict[str, Flag] = {}
    for kind in kinds:
        group = Group(f"Task {kind.name}", _first_sentence(kind), sort_key=10)
        for flag in model_flags(kind, group, at=("task",), names={"seed": ("--data-seed",)}):
            found.setdefault(flag.parameter.name, flag)
    return list(found.values())


def chosen_tasks(tokens: Sequence[str]) -> list[type[Task]]:
    """The task that a command line is about, by --task or the file of --config; none if unsaid.

    Raises UsageError for a task that there is not.
    """
    name = option(tokens, "--task") or _task_of_file(option(tokens, "--config"))
    if name is None:
        return []
    if name not in TASKS:
        raise UsageError(f"There is no task {name!r}.", fix=suggest(name, TASKS))
    return [TASKS[name]]


def trainer_config(
    flags: Iterable[Flag],
    given: Mapping[str, Any],
    start: StartFlags,
    *,
    task: str | None = None,
) -> TrainerConfig:
    """The configuration that all of these come to. Raises ConfigError or UsageError."""
    file = start.config
    values = _values_of_file(file)
    assigned = merge({}, *start.assignments)
    preset = start.preset or _taken_name(assigned, "model")
    task = task or _taken_name(assigned, "task")
    changes = overlaid(assigned, given_values(flags, given))
    where = str(file) if file and not (changes or preset or task) else ""
    shape, task_values = changes.pop("model", {}), changes.pop("task", {})
    based = {**values, **changes}.get("init_from")
    if preset or shape or not based:
        values["model"] = _model(preset or values.get("model", DEFAULT_PRESET), shape)
    values["task"] = _task(values.get("task"), task, task_values)
    return TrainerConfig.parse(overlaid(values, changes), where=where)


def configured_task(
    flags: Iterable[Flag], given: Mapping[str, Any], *, name: str | None, file: Path | None
) -> Task:
    """The task that a name, a file and flags come to. Raises ConfigError or UsageError."""
    changes = given_values(flags, given).get("task", {})
    return task_from_plain(_task(_values_of_file(file).get("task"), name, changes))


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of `changes` in place of, or beside, those of `base`."""
    values = dict(base)
    for key, change in changes.items():
        inner = values.get(key)
        if isinstance(inner, Mapping) and isinstance(change, Mapping):
            change = overlaid(inner, change)
        values[key] = change
    return values


def _values_of_file(file: Path | None) -> dict[str, Any]:
    values = {} if file is None else read_yaml(file)
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{file} holds a {type(values).__name__}, expected keys and values.",
            fix="see run.yaml in any run folder for how it looks.",
        )
    return dict(values)


def _taken_name(assigned: dict[str, Any], key: str) -> str | None:
    """The name in `--set model=tiny`, taken out of what was assigned."""
    return assigned.pop(key) if isinstance(assigned.get(key), str) else None


def _model(base: str | Mapping[str, Any], changes: Mapping[str, Any]) -> ModelConfig:
    """A preset or a shape, with some sizes replaced and what follows from them."""
    if isinstance(base, str):
        if base not in presets:
            raise UsageError(f"There is no preset {base!r}.", fix=suggest(base, presets))
        return presets[base].resized(**changes)
    return ModelConfig.parse(base, where="model").resized(**changes)


def _task(base: Any, name: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the task with this name, or else of that of the file."""
    known = {"name": base} if isinstance(base, str) else dict(base or {})
    if name is not None and known.get("name") != name:
        known = {"name": name}
    if "name" not in known:
        raise UsageError("Which task?", fix=f"give --task with one of {', '.join(TASKS)}.")
    return {**known, **changes}


def _task_of_file(file: str | None) -> str | None:
    """The task that a configuration names. What is wrong with the file is said when it is read."""
    try:
        task = _values_of_file(Path(file) if file else None).get("task")
    except ConfigError:
        return None
    name = task.get("name") if isinstance(task, Mapping) else task
    return name if isinstance(name, str) else None


def _first_sentence(kind: type) -> str:
    text = " ".join((kind.__doc__ or "").split())
    return text.partition(". ")[0].removesuffix(".") + "." if text else ""
