"""What a training run will take, as it is shown before it starts.

The numbers are `Trainer.plan`'s; the time is measured on a step here. Owns the view only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from stepwell.cli.machine import free_disk
from stepwell.cli.numbers import bytes_of, duration, short
from stepwell.device import free_memory

if TYPE_CHECKING:
    from stepwell.model.config import ModelConfig
    from stepwell.train.plan import Plan
    from stepwell.train.trainer import Trainer

MEASURABLE_FLOPS: Final = 2e11  # a step that takes two processor cores a few seconds
TIMINGS: Final = 3
FORWARD_SHARE: Final = 1 / 3  # of a training step


def expected_seconds(trainer: Trainer, plan: Plan, steps: int) -> float | None:
    """How long `steps` steps and their evaluations will take; None where a step takes too long.

    The gradients of the first batch are computed a few times, the first one untimed, and the
    fastest counts. Leaves weights as they are.
    """
    if trainer.device.type == "cpu" and plan.flops / plan.steps > MEASURABLE_FLOPS:
        return None
    trainer.compile()
    batch = trainer.batch(0)
    _, *times = [_seconds(lambda: float(trainer.gradients(batch))) for _ in range(1 + TIMINGS)]
    step = min(times)
    config = trainer.config
    evaluations = 1 + (steps // config.evaluate_every if config.evaluate_every else 0)
    return steps * step + evaluations * config.evaluation_batches * FORWARD_SHARE * step


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def plan_as_plain(plan: Plan, done: int, seconds: float | None) -> dict[str, Any]:
    """The plan as plain values."""
    values = {**asdict(plan), "model": plan.model.plain(), "directory": str(plan.directory)}
    return {**values, "steps_done": done, "expected_seconds": seconds}


def plan_table(trainer: Trainer, plan: Plan, done: int, seconds: float | None) -> Table:
    """The plan for people: what, how much, how long."""
    config = trainer.config
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("run", _state(plan, done))
    table.add_row("task", _task(trainer))
    table.add_row("model", f"{short(plan.parameters)} parameters: {describe_model(plan.model)}")
    if plan.trained_parameters < plan.parameters:
        table.add_row("learnt", f"{short(plan.trained_parameters)} parameters, by LoRA")
    table.add_row(
        "training",
        f"{plan.steps:,} steps of {config.batch_size} examples, {short(plan.tokens)} tokens, "
        f"{short(plan.trained_tokens)} of them trained",
    )
    table.add_row("memory", _of(plan.memory_bytes, free_memory(trainer.device)))
    table.add_row("disk", _of(plan.disk_bytes, free_disk(plan.directory)))
    table.add_row("time", _duration(seconds))
    return table


def shortages(trainer: Trainer, plan: Plan) -> list[str]:
    """A sentence for each thing that the plan needs more of than there is."""
    found = []
    memory, disk = free_memory(trainer.device), free_disk(plan.directory)
    if memory is not None and plan.memory_bytes > memory:
        found.append(
            f"this needs about {bytes_of(plan.memory_bytes)} of memory and {bytes_of(memory)} are"
            " free: raise --gradient-accumulation, or use --gradient-checkpointing."
        )
    if disk is not None and plan.disk_bytes > disk:
        found.append(
            f"this needs about {bytes_of(plan.disk_bytes)} of disk and {bytes_of(disk)} are free:"
            " lower --keep-checkpoints, or give another --runs folder."
        )
    return found


def describe_model(model: ModelConfig) -> str:
    """A model's shape in one line."""
    layers = "layer" if model.num_layers == 1 else "layers"
    heads = f"{model.num_heads} heads"
    if model.num_kv_heads != model.num_heads:
        heads += f" ({model.num_kv_heads} for keys)"
    return (
        f"{model.family}, {model.num_layers} {layers} of width {model.width}, {heads}, "
        f"context {model.context_length:,}"
    )


def _state(plan: Plan, done: int) -> Text:
    text = Text(str(plan.directory), style="bold")
    if done:
        text.append(f"  goes on from step {done:,}", style="yellow")
    return text


def _task(trainer: Trainer) -> str:
    fields = {name: value for name, value in trainer.task.plain().items() if name != "name"}
    return f"{trainer.task.name}: " + ", ".join(f"{name} {value}" for name, value in fields.items())


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured: a step takes long here"
    return f"about {duration(seconds)}" if seconds >= 1 else "less than a second"


def _of(needed: int, free: int | None) -> str:
    return f"about {bytes_of(needed)}" + (f" of {bytes_of(free)} free" if free is not None else "")
