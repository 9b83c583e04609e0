"""A hidden layer that bends what logistic regressions say, shared by all heads.

    log-odds of head h = its regression's own + outer[h] tanh(inputs @ inner)

Training starts at the regressions, as outer is 0, and what is kept of it is where prompts held out
are predicted best: with few prompts that is the start, and nothing bends. Owns the layer and its
training; what inputs and heads mean is predictor.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepwell.cascade.rule.paths import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor

DECAYS = (0.03, 0.1, 0.4)  # of all weights: a step takes that times the learning rate off them
LEARNING_RATE = 1e-2  # at first; it falls to 0 in a straight line
BATCH = 64  # prompts, each in all of its ways
ROUNDS = 40
STEPS = (10, 150)  # in a round: as many as an epoch has, within these limits
PATIENCE = 15  # rounds without a gain
SURE = 1.0  # standard errors by which prompts held out must be predicted better than without
FEWEST_PROMPTS = 50


@dataclass(frozen=True, eq=False)
class Trunk:
    """The hidden layer: inner [D, H]; outer [heads, K, H]."""

    inner: FloatArray
    outer: FloatArray

    @classmethod
    def none(cls, num_inputs: int, num_heads: int, num_labels: int) -> Trunk:
        """A layer without a unit."""
        return cls(np.zeros((num_inputs, 0)), np.zeros((num_heads, num_labels, 0)))


@dataclass(frozen=True, eq=False)
class Samples:
    """N prompts, each seen in C ways that hide some of its inputs.

    masks[m] says which of the D inputs are seen; ways [N, C] say which mask a prompt is seen
    through; the c-th way is head heads[c]'s. good [N, K] are labels, counts [N] weigh the prompts,
    folds [N] say which part of the prompts each is held out with.
    """

    inputs: FloatArray
    masks: BoolArray
    ways: IntArray
    heads: IntArray
    good: FloatArray
    counts: FloatArray
    folds: IntArray


def fit_trunks(
    samples: Samples, offsets: FloatArray, width: int, seed: int
) -> tuple[Trunk, ...] | None:
    """For each of F folds the layer learned without it, then that learned from all; None: no gain.

    offsets [F + 1, N, C, K] are the regressions' log-odds, fitted likewise. All layers are trained
    together, with every decay; kept are the decay and the round at which the layers predict best
    what they lack.
    """
    if len(samples.good) < FEWEST_PROMPTS or not width:
        return None
    training = _Training(samples, offsets, width, seed)
    straight_N = least_N = training.held_out_losses()[0]
    kept, since = None, 0
    for number in range(ROUNDS):
        training.round(LEARNING_RATE * (1.0 - number / ROUNDS))
        losses_AN = training.held_out_losses()
        chosen, since = int(losses_AN.sum(dim=1).argmin()), since + 1
        if losses_AN[chosen].sum() < least_N.sum():
            least_N, kept, since = losses_AN[chosen], training.trunks(chosen), 0
        if since == PATIENCE:
            break
    gain_N = straight_N - least_N
    doubt = gain_N.std() / len(gain_N) ** 0.5
    return kept if gain_N.mean() > SURE * doubt else None


class _Training:
    """F + 1 layers for each of A decays: inner [F+1, A, D, H], outer [F+1, A, heads, K, H]."""

    def __init__(self, samples: Samples, offsets: FloatArray, width: int, seed: int) -> None:
        import torch

        def single(array: FloatArray | BoolArray) -> Tensor:
            return torch.tensor(array, dtype=torch.float32)

        self.inputs_ND, self.masks_MD = single(samples.inputs), single(samples.masks)
        self.ways_NC, self.heads_C = torch.tensor(samples.ways), torch.tensor(samples.heads)
        self.good_NK, self.offsets_FNCK = single(samples.good), single(offsets)
        self.counts_N = single(samples.counts / samples.counts.mean())
        layers, self.folds_N = len(offsets), torch.tensor(samples.folds)
        self.learns_FN = torch.arange(layers)[:, None] != self.folds_N

        self.random = torch.Generator().manual_seed(seed)
        num_inputs, many = samples.inputs.shape[1], (layers, len(DECAYS))
        first_DH = torch.randn(num_inputs, width, generator=self.random) / num_inputs**0.5
        heads = int(samples.heads.max()) + 1, samples.good.shape[1]
        self.inner = first_DH.repeat(*many, 1, 1).requires_grad_()
        self.outer = torch.zeros(*many, *heads, width).requires_grad_()
        self.optimizer = torch.optim.Adam([self.inner, self.outer])
        self.batches = self._batches()

    def round(self, rate: float) -> None:
        """Train on as many batches as an epoch has, within limits."""
        import torch

        kept_A = 1.0 - rate * torch.tensor(DECAYS)
        self.optimizer.param_groups[0]["lr"] = rate
        for _ in range(int(np.clip(len(self.good_NK) // BATCH, *STEPS))):
            rows = next(self.batches)
            losses_FAB = self.losses(rows, slice(None)) * self.learns_FN[:, None, rows]
            self.optimizer.zero_grad()
            losses_FAB.mean(dim=2).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            with torch.no_grad():
                self.inner *= kept_A[:, None, None]
                self.outer *= kept_A[:, None, None, None]

    def held_out_losses(self) -> Tensor:
        """As of `losses`, of each prompt by the layers that lack it, [A, N]."""
        import torch

        losses_AN = torch.zeros(len(DECAYS), len(self.good_NK))
        with torch.no_grad():
            for fold in range(len(self.learns_FN) - 1):
                held_out = (self.folds_N == fold).nonzero()[:, 0]
                for first in range(0, len(held_out), 8 * BATCH):
                    rows = held_out[first : first + 8 * BATCH]
                    losses_AN[:, rows] = self.losses(rows, slice(fold, fold + 1))[0]
        return losses_AN

    def losses(self, rows: Tensor, layers: slice) -> Tensor:
        """The weighted log loss of some prompts, summed over ways and labels, [F, A, B]."""
        from torch.nn.functional import softplus

        inputs_CBD = self.inputs_ND[rows] * self.masks_MD[self.ways_NC[rows].T]
        hidden = (inputs_CBD.flatten(0, 1) @ self.inner[layers]).tanh()
        hidden_FACBH = hidden.unflatten(2, inputs_CBD.shape[:2])
        outer_FACHK = self.outer[layers][:, :, self.heads_C].transpose(-1, -2)
        offsets_FACBK = self.offsets_FNCK[layers][:, rows].transpose(1, 2).unsqueeze(1)
        logits_FACBK = offsets_FACBK + hidden_FACBH @ outer_FACHK
        losses_FACBK: Tensor = softplus(logits_FACBK) - self.good_NK[rows] * logits_FACBK
        return losses_FACBK.sum(dim=(2, 4)) * self.counts_N[rows]

    def trunks(self, chosen: int) -> tuple[Trunk, ...]:
        """The layers of one decay as they are now."""
        inner, outer = (
            each.detach()[:, chosen].double().numpy() for each in (self.inner, self.outer)
        )
        return tuple(map(Trunk, inner, outer))

    def _batches(self) -> Iterator[Tensor]:
        """Prompts in orders that differ from epoch to epoch."""
        import torch

        while True:
            order_N = torch.randperm(len(self.good_NK), generator=self.random)
            for first in range(0, len(order_N), BATCH):
                yield order_N[first : first + BATCH]
