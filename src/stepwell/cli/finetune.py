"""`stepwell finetune`: conversations taught to a model that is there.

Owns what is asked for by default when a model is finetuned. The session is that of `train`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Group, Parameter
from rich.text import Text

from stepwell.cli.configured import ALIASES, OPTIMIZER, TRAINING, lora_flags, overlaid
from stepwell.cli.console import OutputFlags
from stepwell.cli.flags import given_values, model_flags, with_flags
from stepwell.cli.train import Session
from stepwell.model.hub import locate
from stepwell.tasks.chats import Chats
from stepwell.train.config import OptimizerConfig, TrainerConfig

EPOCHS: Final = 3
EVALUATIONS: Final = 6
BATCH: Final = 16
RATE: Final = 2e-5
LORA_RATE: Final = 2e-4

NUMBER = Parameter(metavar="N")
DATA = Group("Conversations", sort_key=10)
OWN: Final = ("steps", "batch_size", "evaluate_every", "run_name")
"""Fields of a run whose defaults are others here."""

FLAGS: Final = [
    *model_flags(
        Chats,
        DATA,
        at=("task",),
        names={"seed": ("--data-seed",)},
        without=("path", "tokenizer_from", "tokens", "vocab_size"),
    ),
    *lora_flags(),
    *model_flags(
        TrainerConfig,
        TRAINING,
        without=("model", "task", "optimizer", "init_from", "lora", *OWN),
        names=ALIASES,
    ),
    *model_flags(OptimizerConfig, OPTIMIZER, at=("optimizer",), without=("lr",)),
]


def finetune(
    base: Path,
    /,
    *,
    data: Annotated[Path, Parameter(metavar="PATH")],
    steps: Annotated[int | None, NUMBER] = None,
    batch_size: Annotated[int, NUMBER] = BATCH,
    lr: Annotated[float | None, Parameter(metavar="X")] = None,
    evaluate_every: Annotated[int | None, NUMBER] = None,
    run_name: Annotated[str | None, Parameter(metavar="TEXT")] = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    fresh: Annotated[bool, Parameter(negative=())] = False,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
    **given: Any,
) -> int:
    """Teach conversations to a model. The same command goes on where it stopped.

        stepwell finetune runs/base --data chat.jsonl --lora-rank 8 --run-name tuned
        stepwell finetune runs/base --data chat.jsonl --steps 500 --dry-run

    Parameters
    ----------
    base
        A run folder, model directory, checkpoint or Hub id to begin with.
    data
        A file of conversations, one a line; what the assistant says is learnt.
    steps
        Updates of the weights; by default as many as 3 epochs have.
    batch_size
        Examples an update.
    lr
        The highest learning rate; by default 2e-5, with LoRA 2e-4.
    evaluate_every
        Steps between evaluations on the validation split; by default 6 in a run.
    run_name
        Folder under `runs`; by default named after base and data.
    dry_run
        Show the plan and stop.
    fresh
        Remove what the run's folder holds, and train anew.
    """
    own = {
        "steps": steps,
        "batch_size": batch_size,
        "evaluate_every": evaluate_every,
        "run_name": run_name,
        "optimizer": {} if lr is None else {"lr": lr},
    }
    asked = {name: value for name, value in own.items() if value is not None}
    with output.open() as opened:
        config = finetune_config(base, data, overlaid(given_values(FLAGS, given), asked))
        from stepwell.train.trainer import Trainer

        trainer = Trainer(config)
        trainer.batch(0)  # both raise before anything is written
        trainer.task.example_in("validation", 0)
        session = FinetuneSession(trainer, opened)
        return session.show_plan() if dry_run else session.train(fresh=fresh)


with_flags(finetune, FLAGS)


def finetune_config(base: Path, data: Path, values: Mapping[str, Any]) -> TrainerConfig:
    """The run that finetunes `base`; `values` are the fields that were asked for."""
    fields = {"path": data, "tokenizer_from": locate(base)}
    task = Chats.parse({**fields, **values.get("task", {})})
    batch = values.get("batch_size", BATCH)
    steps = values.get("steps") or math.ceil(EPOCHS * len(task.taught_examples()) / batch)
    defaults = {
        "init_from": base,
        "steps": steps,
        "batch_size": batch,
        "evaluate_every": max(1, steps // EVALUATIONS),
        "run_name": _name(base, data),
        "optimizer": {"lr": LORA_RATE if values.get("lora") else RATE},
    }
    return TrainerConfig.parse({**overlaid(defaults, values), "task": task})


def _name(base: Path, data: Path) -> str:
    """A run's name after both, of the characters that it may have."""
    return re.sub(r"[^A-Za-z0-9._+=-]+|^[^A-Za-z0-9]+", "-", f"{base.name}-{data.stem}").lstrip("-")


class FinetuneSession(Session):
    """A session whose model is there to be talked with."""

    def suggest_next(self, directory: Path) -> None:
        """Says how to talk with the model."""
        self.output.note("\nNext:", style="dim")
        self.output.note(Text(f"  stepwell chat {directory} --temperature 0", style="cyan"))
