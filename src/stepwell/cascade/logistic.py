"""Regularised logistic regressions in float64, many at once, by Newton's method.

Convex and deterministic: the same arrays give the same weights. Knows nothing of stages or answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stepwell.cascade.paths import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_STEPS = 50
TOLERANCE = 1e-9  # of the Newton decrement, in nats summed over the prompts
SMALLEST_STEP = 1e-6
ROWS_AT_ONCE = 1024  # whose curvatures are held in memory


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probabilities, without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def logit(probabilities: FloatArray) -> FloatArray:
    """Log-odds; 0 and 1 are moved inside by less than 1e-12."""
    inside = np.clip(probabilities, 1e-12, 1.0 - 1e-12)
    log_odds: FloatArray = np.log(inside) - np.log1p(-inside)
    return log_odds


def log_loss(logits: FloatArray, labels: FloatArray, weights: FloatArray) -> float:
    """The weighted sum of -log Pr(label), in nats; labels may be shares in [0, 1]."""
    return float((weights * (np.logaddexp(0.0, logits) - labels * logits)).sum())


def fit_logistic(
    design: FloatArray,
    labels: FloatArray,
    weights: FloatArray,
    ridge: FloatArray,
    start: FloatArray,
    offset: float = 0.0,
    guess: FloatArray | None = None,
) -> FloatArray:
    """Coefficients [..., D] that minimise log loss + sum of ridge * (coefficient - start)^2 / 2.

    design is [N, D], the same in all regressions; labels in [0, 1] and weights, which count
    prompts, are [..., N]; ridge, which must be positive, and start [..., D]; offset is added to the
    logits. Newton steps are halved until the objective falls. Torch computes it.
    """
    import torch

    shape = np.broadcast_shapes(labels.shape[:-1], ridge.shape[:-1], start.shape[:-1])
    many = [_many(array, shape) for array in (labels, weights, ridge, start)]
    problem = _Regressions(torch.from_numpy(np.ascontiguousarray(design)), *many, offset)
    if guess is not None:
        problem.guess_BD = torch.from_numpy(np.array(guess).reshape(-1, design.shape[1]))
    found: FloatArray = problem.solve().numpy().reshape(*shape, design.shape[1])
    return found


def _many(array: npt.ArrayLike, shape: tuple[int, ...]) -> Tensor:
    """Rows [B, ...] of an array that `shape` regressions have their own of, or share."""
    import torch

    values = np.asarray(array, dtype=np.float64)
    spread = np.broadcast_to(values, (*shape, values.shape[-1]))
    return torch.from_numpy(np.array(spread).reshape(-1, values.shape[-1]))


class _Regressions:
    """B regressions on the same design: labels and weights [B, N], ridge and start [B, D]."""

    def __init__(
        self,
        design_ND: Tensor,
        labels_BN: Tensor,
        weights_BN: Tensor,
        ridge_BD: Tensor,
        start_BD: Tensor,
        offset: float,
    ) -> None:
        self.design_ND, self.labels_BN, self.weights_BN = design_ND, labels_BN, weights_BN
        self.ridge_BD, self.start_BD, self.offset = ridge_BD, start_BD, offset

    def solve(self) -> Tensor:
        """The minimum of each, [B, D]."""
        import torch

        beta_BD = getattr(self, "guess_BD", self.start_BD)
        logits_BN = self.logits(beta_BD)
        value_B = self.objective(beta_BD, logits_BN)
        for _ in range(MAX_STEPS):
            slope_BD, curvature_BDD = self.derivatives(beta_BD, logits_BN)
            step_BD = torch.linalg.solve(curvature_BDD, slope_BD)
            if ((slope_BD * step_BD).sum(dim=1) < TOLERANCE).all():
                break
            size_B1 = torch.ones(len(beta_BD), 1, dtype=torch.float64)
            while True:
                tried_BD = beta_BD - size_B1 * step_BD
                logits_BN = self.logits(tried_BD)
                tried_B = self.objective(tried_BD, logits_BN)
                worse_B1 = (tried_B > value_B)[:, None] & (size_B1 > SMALLEST_STEP)
                if not worse_B1.any():
                    break
                size_B1 = torch.where(worse_B1, size_B1 / 2, size_B1)
            beta_BD, value_B = tried_BD, tried_B
        return beta_BD

    def logits(self, beta_BD: Tensor) -> Tensor:
        """[B, N]"""
        return beta_BD @ self.design_ND.T + self.offset

    def objective(self, beta_BD: Tensor, logits_BN: Tensor) -> Tensor:
        """[B]"""
        import torch

        loss_BN = torch.logaddexp(logits_BN, torch.zeros_like(logits_BN))
        loss_B = (self.weights_BN * (loss_BN - self.labels_BN * logits_BN)).sum(dim=1)
        return loss_B + (self.ridge_BD * (beta_BD - self.start_BD) ** 2).sum(dim=1) / 2

    def derivatives(self, beta_BD: Tensor, logits_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient [B, D] and the Hessian [B, D, D] of the objective."""
        import torch

        chance_BN = logits_BN.sigmoid()
        slope_BD = (self.weights_BN * (chance_BN - self.labels_BN)) @ self.design_ND
        slope_BD += self.ridge_BD * (beta_BD - self.start_BD)
        variance_NB = (self.weights_BN * chance_BN * (1 - chance_BN)).T
        return slope_BD, second_moments(self.design_ND, variance_NB) + torch.diag_embed(
            self.ridge_BD
        )


def second_moments(design_ND: Tensor, weights_NB: Tensor) -> Tensor:
    """Sums over rows of weight * x x^T, for each column of weights, [B, D, D]."""
    import torch

    num_inputs, count = design_ND.shape[1], weights_NB.shape[1]
    total = torch.zeros(num_inputs, count * num_inputs, dtype=design_ND.dtype)
    for rows, weights in zip(
        design_ND.split(ROWS_AT_ONCE), weights_NB.split(ROWS_AT_ONCE), strict=True
    ):
        weighted = (weights[:, :, None] * rows[:, None, :]).flatten(1)
        total += rows.T @ weighted
    return total.view(num_inputs, count, num_inputs).transpose(0, 1)
