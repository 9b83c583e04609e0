"""The update: AdamW, its learning rate as a function of the step, clipping and refusal.

Owns no state of its own: the schedule is pure, and the optimizer is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import AdamW

from stepwell.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of update number `step` (from 0) of `steps`: a linear warm-up, then the schedule."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr * (1 - (1 - config.final_share) * fallen(config, progress))


def fallen(config: OptimizerConfig, progress: float) -> float:
    """How far the rate has fallen, 0 (highest) to 1 (final), at a progress in [0, 1] after warm-up.

    Sources: cosine, Loshchilov and Hutter 2017; wsd with a root, Haegele et al. 2024.
    """
    match config.schedule:
        case "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * progress)
        case "linear":
            return progress
        case "wsd":
            decaying = max(0.0, progress - (1 - config.decay))
            return math.sqrt(decaying / config.decay) if decaying else 0.0
        case "constant":
            return 0.0


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW, fused, over all parameters; only matrices (embeddings included) decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def update(
    optimizer: AdamW, parameters: Sequence[nn.Parameter], loss: Tensor, lr: float, clip: float
) -> tuple[Tensor, Tensor]:
    """Moves the weights; returns (loss, norm of the gradients before clipping), both scalars.

    Where either is not finite, weights and optimizer stay as they were and the loss comes back as
    NaN. This is decided on the device, by the switch that gradient scalers use, so that the caller
    need not wait for the numbers.
    """
    if clip:
        norm = clip_grad_norm_(parameters, clip)
    else:
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    refused = ~torch.isfinite(loss + norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    setattr(optimizer, "found_inf", refused.float())  # noqa: B010  # torch does not declare it
    optimizer.step()
    return torch.where(refused, torch.nan, loss), norm
