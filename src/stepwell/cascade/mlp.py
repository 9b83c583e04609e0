"""A hidden layer that bends what logistic regressions say, shared by all heads.

    log-odds of head h = its regression's own + outer[h] tanh(inputs @ inner)

Training starts at the regressions, as outer is 0, and ends where prompts held out are predicted
best: with few prompts that is at once, and nothing bends. Owns the layer and its training; what the
inputs mean is predictor.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepwell.cascade.paths import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor

DECAYS = (0.03, 0.1, 0.4)  # of the weights: a step loses that share times the learning rate
LEARNING_RATE = 1e-2  # falls to 0 in a straight line
BATCH = 64  # prompts, each in all of its ways
ROUND = (10, 150)  # steps between two looks at the prompts held out: an epoch, within these limits
ROUNDS = 40
PATIENCE = 15  # rounds without a gain
SURE = 2.0  # standard errors by which the prompts held out must be predicted better


@dataclass(frozen=True, eq=False)
class Trunk:
    """The hidden layer: inner [D, H]; outer [heads, K, H]."""

    inner: FloatArray
    outer: FloatArray

    def hidden(self, inputs: FloatArray) -> FloatArray:
        """What the H units say of inputs [..., D]."""
        units: FloatArray = np.tanh(inputs @ self.inner)
        return units


@dataclass(frozen=True, eq=False)
class Samples:
    """N prompts, each seen in C ways that hide some of its inputs.

    masks[m] says which of the D inputs are seen; ways [N, C] say which mask a prompt is seen
    through; the c-th way is head heads[c]'s. good [N, K] are labels, counts [N] weigh the prompts.
    """

    inputs: FloatArray
    masks: BoolArray
    ways: IntArray
    heads: IntArray
    good: FloatArray
    counts: FloatArray


def fit_trunks(
    samples: Samples, offsets: FloatArray, folds: IntArray, width: int, seed: int
) -> list[Trunk] | None:
    """For each of F folds the layer learned without it, then that learned from all; None: no gain.

    offsets [F + 1, N, C, K] are the regressions' log-odds, fitted likewise. All layers are trained
    together, with every decay; kept are the decay and the step at which the layers predict best
    what they lack.
    """
    training = _Training(samples, offsets, folds, width, seed)
    straight_N = training.held_out_losses()[0]
    least, since = straight_N.mean().item(), 0
    kept: list[Trunk] | None = None
    gain = 0
    for step in range(ROUNDS):
        training.round(1.0 - step / ROUNDS)
        losses_AN = training.held_out_losses()
        chosen = int(losses_AN.mean(dim=1).argmin())
        since += 1
        if losses_AN[chosen].mean().item() < least:
            least, since, kept = losses_AN[chosen].mean().item(), 0, training.trunks(chosen)
            g = straight_N - losses_AN[chosen]
            gain = g.mean().item() / (g.std().item() / len(g) ** 0.5)
        if since >= PATIENCE:
            break
    INFO.append((round(gain,2), step, chosen))
    return kept if gain > SURE else None
INFO = []

class _Training:
    """F + 1 layers for each of A decays: inner [F+1, A, D, H], outer [F+1, A, heads, K, H]."""

    def __init__(
        self, samples: Samples, offsets: FloatArray, folds: IntArray, width: int, seed: int
    ) -> None:
        import torch

        single = torch.float32
        self.inputs_ND = torch.from_numpy(samples.inputs).to(single)
        self.masks_SD = torch.from_numpy(samples.masks).to(single)
        self.ways_NC, self.heads_C = torch.from_numpy(samples.ways), torch.from_numpy(samples.heads)
        self.good_NK = torch.from_numpy(samples.good).to(single)
        self.offsets_FNCK = torch.from_numpy(offsets).to(single)
        self.folds_N = torch.from_numpy(folds)
        counts_N = torch.from_numpy(samples.counts / samples.counts.mean()).to(single)
        self.held_out_FN = counts_N * (self.folds_N == torch.arange(len(offsets) - 1)[:, None])
        self.counts_FN = counts_N.repeat(len(offsets), 1)
        self.counts_FN[:-1] -= self.held_out_FN

        self.random = torch.Generator().manual_seed(seed)
        num_inputs, many = samples.inputs.shape[1], (len(offsets), len(DECAYS))
        first_DH = torch.randn(num_inputs, width, generator=self.random) / num_inputs**0.5
        self.inner = first_DH.repeat(*many, 1, 1).requires_grad_()
        num_heads = int(samples.heads.max()) + 1
        self.outer = torch.zeros(*many, num_heads, samples.good.shape[1], width).requires_grad_()
        self.optimizer = torch.optim.Adam([self.inner, self.outer], lr=LEARNING_RATE)
        self.kept_A = 1.0 - LEARNING_RATE * torch.tensor(DECAYS)
        self.batches = self._batches()

    def round(self, rate) -> None:
        """Train on as many batches as an epoch has, or a few more or less."""
        import torch
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        self.kept_A = 1.0 - LEARNING_RATE * rate * torch.tensor(DECAYS)

        for _ in range(int(np.clip(len(self.good_NK) // BATCH, *ROUND))):
            rows = next(self.batches)
            loss = self.losses(self.counts_FN[:, rows], rows, slice(None)).mean(dim=2).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                for weights in (self.inner, self.outer):
                    weights *= self.kept_A.view(-1, *[1] * (weights.ndim - 2))

    def held_out_losses(self) -> Tensor:
        """Log loss a prompt, summed over ways and labels, by the layers that lack it, [A]."""
        import torch

        total_AN = torch.zeros(len(DECAYS), len(self.good_NK))
        with torch.no_grad():
            for fold, counts_N in enumerate(self.held_out_FN):
                for rows in counts_N.nonzero()[:, 0].split(8 * BATCH):
                    layers = slice(fold, fold + 1)
                    total_AN[:, rows] = self.losses(counts_N[None, rows], rows, layers)[0]
        return total_AN

    def losses(self, counts_FB: Tensor, rows: Tensor, layers: slice) -> Tensor:
        """[F,A,B]"""
        from torch.nn.functional import softplus

        inputs_CBD = self.inputs_ND[rows] * self.masks_SD[self.ways_NC[rows].T]
        inner, outer = self.inner[layers], self.outer[layers][:, :, self.heads_C]
        hidden = (inputs_CBD.flatten(0, 1) @ inner).tanh()
        hidden = hidden.unflatten(2, inputs_CBD.shape[:2])
        offsets = self.offsets_FNCK[layers][:, rows].transpose(1, 2).unsqueeze(1)
        logits = offsets + hidden @ outer.transpose(-1, -2)
        loss = softplus(logits) - self.good_NK[rows] * logits
        return loss.sum(dim=(2, 4)) * counts_FB[:, None]

    def trunks(self, chosen: int) -> list[Trunk]:
        """The layers of one decay as they are now."""
        inner, outer = (
            each.detach()[:, chosen].double().numpy() for each in (self.inner, self.outer)
        )
        return [Trunk(one, other) for one, other in zip(inner, outer, strict=True)]

    def _batches(self) -> Iterator[Tensor]:
        import torch

        while True:
            order = torch.randperm(len(self.good_NK), generator=self.random)
            for rows in order.split(BATCH):
                yield rows
