"""What a run will take, estimated without building the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwell.model.config import ModelConfig
from stepwell.tasks.base import IGNORE, Batch
from stepwell.train.config import TrainerConfig

FLOAT_BYTES = 4  # weights, gradients, optimizer; an upper bound for activations in bfloat16


@dataclass(frozen=True)
class Plan:
    """Parameters, tokens, operations and bytes of a run; `model` is the resolved shape."""

    directory: Path
    model: ModelConfig
    steps: int
    parameters: int
    trained_parameters: int
    tokens: int
    trained_tokens: int
    flops: float
    memory_bytes: int
    disk_bytes: int


def make_plan(
    config: TrainerConfig, model: ModelConfig, batch: Batch, num_new_tokens: int = 0
) -> Plan:
    """The plan of a run whose batches are like `batch`.

    A backward pass takes twice the operations of a forward pass. On the disk there is one
    checkpoint more than is kept (it is being written), and the best weights twice.
    """
    rows, length = batch.ids.shape
    rows = -(-rows // config.gradient_accumulation)
    num_labels = int((batch.labels != IGNORE).sum())
    weights = model.num_parameters * FLOAT_BYTES
    trained = _num_trained(config, model, num_new_tokens)
    states = 2 * trained * FLOAT_BYTES  # of AdamW
    activations = activation_bytes(
        model,
        num_tokens=rows * length,
        num_labels=-(-num_labels // config.gradient_accumulation),
        gradient_checkpointing=config.gradient_checkpointing,
    )
    return Plan(
        directory=config.directory,
        model=model,
        steps=config.steps,
        parameters=model.num_parameters,
        trained_parameters=trained,
        tokens=config.steps * batch.ids.numel(),
        trained_tokens=config.steps * num_labels,
        flops=3 * config.steps * model.flops(batch.ids.numel(), length // 2),
        memory_bytes=weights + trained * FLOAT_BYTES + states + activations,
        disk_bytes=(config.keep_checkpoints + 1) * (weights + states) + 2 * weights,
    )


def _num_trained(config: TrainerConfig, model: ModelConfig, num_new_tokens: int) -> int:
    if config.lora is None:
        return model.num_parameters
    from stepwell.train.lora import num_trained

    return num_trained(config.lora, model, num_new_tokens)


def activation_bytes(
    model: ModelConfig, *, num_tokens: int, num_labels: int, gradient_checkpointing: bool
) -> int:
    """Bytes that a forward pass keeps for the backward pass, counted over the layers' operations.

    In channels a token and layer: input and output of both norms (4 width); queries, keys, values
    and the heads' output; and what the MLP multiplies. Checkpointing keeps the input of each layer,
    and one layer as a whole while it is computed again.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    mlp = (4 if model.gated_mlp else 2) * model.mlp_width
    layer = 4 * model.width + 2 * queries + 2 * keys + mlp
    layers = model.num_layers * layer
    if gradient_checkpointing:
        layers = model.num_layers * model.width + layer
    ends = num_tokens * 2 * model.width + num_labels * (model.width + 2 * model.vocab_size)
    return FLOAT_BYTES * (num_tokens * layers + ends)
