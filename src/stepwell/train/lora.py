"""LoRA: a frozen model whose matrices learn a change of low rank (Hu et al. 2021).

Owns what is put into a model before training and taken out of it after. The format of what is
written is that of `model.adapter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stepwell.errors import ConfigError, suggest
from stepwell.model.adapter import Adapter, LowRank, assembled, merged, write_adapter
from stepwell.model.config import ModelConfig
from stepwell.model.names import NAMES
from stepwell.model.transformer import Transformer
from stepwell.train.config import LoraConfig


class LoraLinear(nn.Module):
    """A frozen linear map plus scale * B A, of which A and B are learnt; B begins as 0."""

    def __init__(self, linear: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout = config.scale, nn.Dropout(config.dropout)
        bound = linear.in_features**-0.5  # as PEFT begins: Kaiming's uniform bound with a root of 5
        a = torch.rand(config.rank, linear.in_features, generator=generator)
        self.lora_a = nn.Parameter(bound * (2 * a - 1))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        """What the frozen map gives, and the change of it."""
        change = F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * change


class LearntRows(nn.Module):
    """A parametrization: a matrix of which only the rows of some tokens are learnt."""

    def __init__(self, ids: Sequence[int], weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(weight.detach()[list(ids)].clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix with the learnt rows in their places."""
        ids = self.ids
        assert isinstance(ids, Tensor)
        return weight.index_copy(0, ids, self.rows)


def adapt(model: Transformer, config: LoraConfig, new_ids: Sequence[int], seed: int) -> None:
    """Freezes a model but for what LoRA learns: adapters, and the rows of new tokens."""
    names = target_names(config, model.config)
    model.requires_grad_(False)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name in names:
        parent, _, last = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), last, LoraLinear(linear, config, generator))
    if new_ids:
        for module in token_matrices(model):
            rows = LearntRows(new_ids, module.weight)
            parametrize.register_parametrization(module, "weight", rows)


def num_trained(config: LoraConfig, model: ModelConfig, num_new: int) -> int:
    """How many values LoRA learns in a model of this shape with so many new tokens."""
    with torch.device("meta"):
        shaped = Transformer(model)
    linears = [shaped.get_submodule(name) for name in target_names(config, model)]
    sizes = sum(sum(linear.weight.shape) for linear in linears)  # type: ignore[arg-type,misc]
    matrices = sum(1 for _ in token_matrices(shaped))
    return config.rank * sizes + num_new * model.width * matrices


def token_matrices(model: Transformer) -> Iterator[nn.Embedding | nn.Linear]:
    """The embedding, and the head where it is not the same matrix."""
    yield model.embed
    if isinstance(model.head, nn.Linear):
        yield model.head


def target_names(config: LoraConfig, model: ModelConfig) -> list[str]:
    """The modules that get an adapter, layer by layer. Raises ConfigError for a name of none.

    A target is called as in the family's files (q_proj, c_attn, mlp.c_proj) or as in ours (up).
    """
    with torch.device("meta"):
        shaped = Transformer(model)
    linears = {name for name, each in shaped.blocks.named_modules() if isinstance(each, nn.Linear)}
    called: dict[str, set[str]] = {}
    for row in NAMES[model.family]:
        for ours in row.ours:
            if ours.replace("blocks.{}", "0") in linears:
                theirs = row.theirs.split(".")
                names = {theirs[-1], ".".join(theirs[-2:]), ours.rpartition(".")[2]}
                called[ours] = names
    _refuse_unknown(config.targets, {name for names in called.values() for name in names}, model)
    chosen = [
        ours
        for ours, names in called.items()
        if config.targets == ("all-linear",) or names & set(config.targets)
    ]
    return [ours.format(layer) for layer in range(model.num_layers) for ours in chosen]


def _refuse_unknown(targets: Sequence[str], known: set[str], model: ModelConfig) -> None:
    unknown = [name for name in targets if name not in known]
    if unknown and tuple(targets) != ("all-linear",):
        raise ConfigError(
            f"lora.targets: a {model.family} model has no matrix {unknown[0]!r} in its layers."
            f" {suggest(unknown[0], known)}",
            fix='name some of its matrices, or "all-linear" alone.',
        )


# -- what was learnt -------------------------------------------------------------------------------


def plain_model(model: Transformer) -> Transformer:
    """The model with all that was learnt merged into plain matrices."""
    return merged(_frozen(model), learnt(model))


def save_adapter(directory: Path, model: Transformer, config: LoraConfig, base: str) -> None:
    """Writes what was learnt beside the frozen matrices, as PEFT loads it."""
    plain, adapter = _frozen(model), learnt(model)
    write_adapter(
        directory,
        plain,
        adapter,
        base=base,
        rank=config.rank,
        alpha=config.strength,
        dropout=config.dropout,
    )


def learnt(model: Transformer) -> Adapter:
    """What was learnt, by the names of a plain model's parameters."""
    matrices = {
        f"{name}.weight": LowRank(module.lora_a.detach(), module.lora_b.detach(), module.scale)
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
    }
    rows = {
        f"{name}.weight": (rows.ids, rows.rows.detach())
        for name, module in model.named_modules()
        if (rows := _rows_of(module)) is not None
    }
    return Adapter(matrices, rows, {})  # type: ignore[arg-type]


def _frozen(model: Transformer) -> Transformer:
    """The plain model under the adapters."""
    state = {
        name.replace(".parametrizations.weight.original", ".weight"): weight.detach()
        for name, weight in model.named_parameters()
        if not weight.requires_grad
    }
    return assembled(model, state)


def _rows_of(module: nn.Module) -> LearntRows | None:
    if not parametrize.is_parametrized(module, "weight"):
        return None
    rows = module.parametrizations.weight[0]  # type: ignore[union-attr,index]
    return rows if isinstance(rows, LearntRows) else None
