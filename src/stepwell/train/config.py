"""What a training run is made of: model, task, optimizer, and how often it looks and saves.

Owns the fields (they become flags, YAML and the reference page) and which of them a resumed run may
change. How a field acts is in the module that uses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import pydantic
from pydantic import Field

from stepwell.config import Config, fingerprint
from stepwell.errors import suggest
from stepwell.model.config import ModelConfig
from stepwell.model.presets import presets
from stepwell.tasks.base import Task

Schedule = Literal["cosine", "wsd", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]
NonFinitePolicy = Literal["stop", "skip"]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
CountOrNone = Annotated[int, Field(ge=0, le=2**40)]

FREE_ON_RESUME: Final = frozenset(
    {"run_name", "runs", "keep_checkpoints", "threads", "device", "init_from", "patience"}
)
"""Fields that a resumed run may change: they are no part of the arithmetic that was asked for.

What lies at `init_from` is; it counts by its content, as the task's files do.
"""


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter 2019) and its learning rate over the run."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    lr: Positive = 1e-3
    """The highest learning rate, reached at the end of the warm-up."""
    schedule: Schedule = "cosine"
    """How the rate falls after the warm-up; wsd stays, then falls."""
    warmup: Share = 0.02
    """Share of all steps over which the rate rises from 0."""
    decay: Share = 0.2
    """Share of the steps after the warm-up over which schedule wsd falls."""
    final_share: Share = 0.1
    """What is left of the learning rate at the end, as a share of it (not with constant)."""
    weight_decay: NotNegative = 0.1
    """Decay of matrices, embeddings included; biases and norms do not decay."""
    beta1: Momentum = 0.9
    """Memory of the mean gradient."""
    beta2: Momentum = 0.95
    """Memory of the mean squared gradient."""
    eps: Positive = 1e-8
    """Added to the root of the mean squared gradient."""


class LoraConfig(Config):
    """Changes of low rank that are learnt beside frozen matrices (Hu et al. 2021)."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    rank: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Rank of each change."""
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """A change counts alpha / rank times; 0: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of a change's inputs that each step leaves out."""
    targets: tuple[str, ...] = ("all-linear",)
    """Matrices that change, such as q_proj and v_proj; all-linear: all those of the layers."""

    @property
    def strength(self) -> float:
        """Alpha, where it is not given too."""
        return self.alpha or 2.0 * self.rank

    @property
    def scale(self) -> float:
        """How much a change counts."""
        return self.strength / self.rank


class TrainerConfig(Config):
    """Everything that a training run needs. The same configuration goes on where it stopped."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    model: ModelConfig
    """Shape of the model, or the name of a preset; the task's tokenizer sets the vocabulary."""
    task: Task
    """What is learnt, or the name of a task."""
    init_from: Path | None = None
    """A model directory, run folder or checkpoint that the run begins with; it says the shape."""
    lora: LoraConfig | None = None
    """Learn changes of low rank beside the weights of init_from, which stay as they are."""
    steps: Count = 1000
    """Updates of the weights."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Examples an update."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """First weights, and what a loss of one's own draws. The data has its seed in the task."""
    gradient_accumulation: Count = 1
    """Parts that a batch is computed in: the same update in less memory."""
    pack: bool = False
    """Lay several examples in one row, each read by itself: the same update from fewer tokens."""
    clip: NotNegative = 1.0
    """Largest norm of all gradients together; 0 does not clip."""
    precision: Precision = "float32"
    """bfloat16: matrix products in bfloat16, weights and optimizer in float32."""
    interventions: tuple[dict[str, Any], ...] = ()
    """Changes of the layers under which the model learns, as JSON: [{"zero_heads": {"0": [1]}}]."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping what it computed."""
    compile: bool = False
    """Compile layers and loss (torch.compile): a slow start, then faster steps."""
    evaluate_every: CountOrNone = 200
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    patience: CountOrNone = 0
    """Evaluations without a better loss after which the run ends; 0 takes all steps."""
    evaluation_batches: Count = 4
    """Batches an evaluation."""
    samples: CountOrNone = 4
    """Validation examples whose predictions are written under samples/ at each evaluation."""
    save_every: CountOrNone = 500
    """Steps between checkpoints; 0 saves at the end only."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay; the best weights are kept in any case."""
    log_every: Count = 10
    """Steps between the records of training in metrics.jsonl."""
    log_digits: Annotated[int, Field(ge=0, le=17)] = 6
    """Significant digits of the numbers in metrics.jsonl; 0 writes all."""
    on_nan: NonFinitePolicy = "stop"
    """A loss or gradient that is not finite ends the run, or only its update is skipped."""
    run_name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._+=-]*)?$")] = ""
    """Folder under `runs`; by default the task's name and a hash of this configuration."""
    runs: Path = Field(default_factory=lambda: Path(os.environ.get("STEPWELL_RUNS", "runs")))
    """Folder of all runs; by default STEPWELL_RUNS, or ./runs."""
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    """Threads of the CPU; 0 leaves torch's number. Another number gives other roundings."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _shape_of_the_base(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not values.get("init_from") or "model" in values:
            return values
        from stepwell.train.base import shape_of  # torch, which only this needs

        return {**values, "model": shape_of(Path(values["init_from"]))}

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _preset_by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in presets:
            raise ValueError(f"there is no preset of this name. {suggest(value, presets)}")
        return presets[value]

    @pydantic.field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.field_validator("interventions", mode="before")
    @classmethod
    def _plain_interventions(cls, value: Any) -> Any:
        if not value:
            return ()
        from stepwell.model.interventions import parse_interventions, plain_interventions  # torch

        parsed = parse_interventions(value)
        edits = [edit for each in parsed for edit in each.edits]
        if any(edit.point == "logits" for edit in edits):
            raise ValueError("a model learns through its logits: change a point of a layer")
        if any(edit.needs_prompt for edit in edits):
            raise ValueError("a text to learn from has no prompt: number the positions")
        return tuple(plain_interventions(parsed))

    @pydantic.model_validator(mode="after")
    def _parts_fit_the_batch(self) -> Self:
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation {self.gradient_accumulation} is more than the"
                f" {self.batch_size} examples of a batch"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _lora_fits(self) -> Self:
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora needs init_from, the model whose weights it leaves as they are")
        if self.lora is not None and self.lora.dropout and self.gradient_checkpointing:
            raise ValueError(
                "lora.dropout draws anew in a layer that is computed again; choose one"
            )
        return self

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.runs / (self.run_name or f"{self.task.name}-{self.identity[:8]}")

    @property
    def identity(self) -> str:
        """SHA-256 of the fields that decide the run's arithmetic and records.

        Those at their defaults do not count, so that a later version may add some.
        """
        return fingerprint(arithmetic_of(self.model_dump(mode="json", exclude_defaults=True)))

    def arithmetic(self) -> dict[str, Any]:
        """The plain fields that a resumed run must not change."""
        return arithmetic_of(self.plain())


def arithmetic_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a configuration's plain fields that a resumed run must not change."""
    kept = {key: value for key, value in plain.items() if key not in FREE_ON_RESUME}
    task = kept.get("task")
    if isinstance(task, Mapping):  # a tokenizer counts by its content, with the data
        kept["task"] = {key: value for key, value in task.items() if key != "tokenizer_from"}
    return kept


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`field: old -> new` for each leaf in which two nested plain values differ, by name."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found
