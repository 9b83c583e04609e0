"""Checkpoints: directories that are there whole or not at all, with all that a trainer needs.

    checkpoint-1500/  model.safetensors config.json tokenizer.json ...  a model directory
                      optimizer.safetensors trainer.json                what training goes on from
                      trained.safetensors                               the same, where LoRA learns
                      manifest.json                                     SHA-256 of each, the last

Owns what is inside, which checkpoint counts, and which go. Knows nothing of the loop.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepwell.config import Config, read_json, write_json
from stepwell.errors import CheckpointError, ConfigError
from stepwell.model.tensor_files import read_safetensors, write_safetensors
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model
from stepwell.storage.sealed import FORMAT_VERSION, discard, disk, refuse_newer, verify
from stepwell.tasks.base import Task

GENERATION_CONFIG: Final = "generation_config.json"
OPTIMIZER: Final = "optimizer.safetensors"
STATE: Final = "trainer.json"
TRAINED: Final = "trained.safetensors"

logger = logging.getLogger(__name__)


class Best(Config):
    """The evaluation with the lowest loss so far."""

    step: int
    metrics: dict[str, float | None]

    @property
    def loss(self) -> float:
        """Its validation loss; infinite where that was not finite."""
        loss = self.metrics["loss"]
        return math.inf if loss is None else loss


class TrainerState(Config):
    """Where a run stands between two steps, beyond weights and optimizer.

    losses: those since the last record, None where a step was refused. random: torch's generators
    by kind of device, in hexadecimal. run: the identity of the configuration. best: the evaluation
    whose weights are published. epochs: how often the data has been gone through. lowest: the
    lowest validation loss, and since_lowest the number of evaluations after it.
    """

    step: int
    tokens: int
    seconds: float
    losses: tuple[float | None, ...]
    metrics_bytes: int
    random: dict[str, str]
    threads: int
    run: str
    best: Best | None = None
    epochs: dict[str, float] = {}  # noqa: RUF012  # pydantic copies it
    lowest: float | None = None
    since_lowest: int = 0
    format_version: int = FORMAT_VERSION

    def is_end(self, steps: int, patience: int) -> bool:
        """Whether a run of so many steps, and so much patience (0: any), ends here."""
        return self.step >= steps or 0 < patience <= self.since_lowest

    def window(self) -> list[float]:
        """The losses as numbers, NaN where a step was refused."""
        return [math.nan if loss is None else loss for loss in self.losses]


# -- the checkpoints of a run --------------------------------------------------------------------


def checkpoint_path(run: Path, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return run / f"checkpoint-{step}"


def checkpoints(run: Path) -> list[Path]:
    """All committed checkpoints of a run, the newest first; they may be damaged."""
    found = {
        int(match[1]): path
        for path in run.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return [found[step] for step in sorted(found, reverse=True)]


def newest(run: Path) -> Path | None:
    """The newest checkpoint whose manifest verifies, None where the run has none.

    What is damaged is logged as a warning. Raises CheckpointError where all of them are.
    """
    found = checkpoints(run)
    for path in found:
        try:
            verify(path)
        except CheckpointError as error:
            logger.warning("%s passed over: %s", path.name, error.problem)
            continue
        return path
    if found:
        raise CheckpointError(
            f"{run}: all {len(found)} checkpoints are damaged.",
            fix="train anew with fresh=True, or under another run name.",
        )
    return None


def prune(run: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints."""
    with disk(run):
        for path in checkpoints(run)[keep:]:
            discard(path)


# -- what is inside ------------------------------------------------------------------------------


def write_model(
    directory: Path,
    model: Transformer,
    task: Task,
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Saves weights, tokenizer and generation defaults: a Hugging Face model directory.

    sampling: what generation_config.json says beside the length of an answer.
    """
    defaults = json.dumps({**sampling, "max_new_tokens": task.max_answer_tokens})
    (directory / GENERATION_CONFIG).write_text(defaults)
    save_model(model, directory)  # adds the ids of special tokens, and flushes
    task.tokenizer.save(directory)


def write_state(
    directory: Path, state: TrainerState, model: Transformer, optimizer: Optimizer
) -> None:
    """Saves what training goes on from, beside the model's own files."""
    tensors = optimizer_tensors(model, optimizer)
    shapes = {name: value.shape for name, value in tensors.items()}
    write_safetensors(directory / OPTIMIZER, shapes, torch.float32, tensors.__getitem__)
    trained = trained_parameters(model)
    if len(trained) < sum(1 for _ in model.parameters()):
        sizes = {name: value.shape for name, value in trained.items()}
        write_safetensors(directory / TRAINED, sizes, torch.float32, trained.__getitem__)
    write_json(directory / STATE, state.plain())


def trained_parameters(model: Transformer) -> dict[str, Tensor]:
    """The parameters that are not frozen, by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def read_weights(directory: Path, model: Transformer) -> None:
    """Gives a trainer's model the weights of a verified checkpoint. Raises CheckpointError."""
    path = directory / TRAINED
    if not path.exists():
        model.load_state_dict(load_model(directory, mmap=False).state_dict())
        return
    read, trained = read_safetensors(path), trained_parameters(model)
    if read.keys() != trained.keys():
        odd = min(read.keys() ^ trained.keys())
        raise CheckpointError(f"{path} and the model differ in {odd}.")
    with torch.no_grad():
        for name, value in read.items():
            trained[name].copy_(value)


def read_state(directory: Path) -> TrainerState:
    """The state of a verified checkpoint. Raises CheckpointError or FormatError."""
    path = directory / STATE
    try:
        values = read_json(path)
        refuse_newer(values.get("format_version", 0), path)
        return TrainerState.parse(values, where=str(path))
    except ConfigError as error:
        raise CheckpointError(error.problem, fix="use another checkpoint.") from None


def optimizer_tensors(model: Transformer, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by name: `blocks.0.mlp.up.weight.exp_avg`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def read_optimizer(directory: Path, model: Transformer, optimizer: Optimizer) -> None:
    """Gives the optimizer the state of a verified checkpoint. Raises CheckpointError."""
    path = directory / OPTIMIZER
    parameters = dict(model.named_parameters())
    for full_name, value in read_safetensors(path).items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"{path} holds {full_name}, which the model does not have.")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that training on `device` draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def as_text(state: Tensor) -> str:
    """A generator's state in hexadecimal."""
    return state.numpy().tobytes().hex()


def restore_random_states(states: Mapping[str, str], device: torch.device) -> None:
    """Sets torch's generators to states in hexadecimal."""
    for kind, text in states.items():
        state = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        if kind == "cpu":
            torch.set_rng_state(state)
        elif kind == device.type:
            torch.cuda.set_rng_state(state, device)
