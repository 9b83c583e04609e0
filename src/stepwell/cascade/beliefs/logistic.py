"""Regularised logistic regressions in float64, many at once, by Newton's method.

Convex and deterministic: the same arrays give the same weights. Owns the regression and the choice
of its ridge by evidence; knows nothing of stages or answers. Torch computes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stepwell.cascade.rule.paths import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_STEPS = 50
TOLERANCE = 1e-9  # of the Newton decrement, in nats summed over the prompts
SMALLEST_STEP = 1e-6
ROWS_AT_ONCE = 1024  # whose curvatures are held in memory
FIRST_RIDGE = 10.0
RIDGE_LIMITS = (0.3, 1e4)
EVIDENCE_STEPS = 12
EVIDENCE_TOLERANCE = 0.1  # of the logarithm of every ridge
ROUGHLY = 1e-4  # the tolerance while ridges still move


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
) -> FloatArray:
    """Coefficients [D] that minimise log loss + sum of ridge * (coefficient - start)^2 / 2.

    design is [N, D]; labels in [0, 1]; weights count prompts; ridge [D] must be positive; offset is
    added to the logits. Newton steps are halved until the objective falls.
    """
    rows = labels[None], weights[None], ridge[None], start[None]
    problem = _Regressions(design, *rows, offset)
    found: FloatArray = problem.solve(problem.start_BD)[0].numpy()
    return found


def fit_by_evidence(
    design: FloatArray, labels: FloatArray, weights: FloatArray, start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Coefficients [F, K, D] and their ridges [F, D], for K kinds of label and F ways to weigh.

    design is [N, D], its first column constant; labels [K, N]; weights [F, N]; start [K, D]. The
    constant is held to its start by one prompt. Each other input has a ridge that all K share: the
    one of most evidence, so that an input which tells nothing is as good as left out (MacKay 1992,
    Bayesian interpolation; The evidence framework applied to classification networks).
    """
    import torch

    num_ways, (num_kinds, num_inputs) = len(weights), start.shape
    ridge_FD = torch.full((num_ways, num_inputs), FIRST_RIDGE, dtype=torch.float64)
    ridge_FD[:, 0] = 1.0
    problem = _Regressions(
        design,
        np.tile(labels, (num_ways, 1)),
        np.repeat(weights, num_kinds, axis=0),
        np.ones((num_ways * num_kinds, num_inputs)),
        np.tile(start, (num_ways, 1)),
    )
    beta_BD, moves_F1 = problem.start_BD, torch.ones(num_ways, 1, dtype=torch.bool)
    for _ in range(EVIDENCE_STEPS):
        problem.ridge_BD = ridge_FD.repeat_interleave(num_kinds, dim=0)
        beta_BD = problem.solve(beta_BD, ROUGHLY)
        found_FD = torch.where(moves_F1, _most_evident(problem, beta_BD, ridge_FD), ridge_FD)
        moves_F1 = ((found_FD / ridge_FD).log().abs() > EVIDENCE_TOLERANCE).any(dim=1, keepdim=True)
        ridge_FD = found_FD
        if not bool(moves_F1.any()):
            break
    problem.ridge_BD = ridge_FD.repeat_interleave(num_kinds, dim=0)
    beta_BD = problem.solve(beta_BD)
    return beta_BD.numpy().reshape(num_ways, num_kinds, num_inputs), ridge_FD.numpy()


def _most_evident(problem: _Regressions, beta_BD: Tensor, ridge_FD: Tensor) -> Tensor:
    """The next ridges [F, D]: how well determined the coefficients are, over their squares."""
    curvature_BDD = problem.derivatives(beta_BD, problem.logits(beta_BD))[1]
    variance_BD = curvature_BDD.inverse().diagonal(dim1=1, dim2=2)
    groups = len(ridge_FD), -1, ridge_FD.shape[1]
    determined_FD = (1.0 - problem.ridge_BD * variance_BD).view(groups).sum(dim=1)
    squares_FD = ((beta_BD - problem.start_BD) ** 2).view(groups).sum(dim=1)
    found_FD = (determined_FD / squares_FD.clamp(min=1e-12)).clamp(*RIDGE_LIMITS)
    found_FD[:, 0] = ridge_FD[:, 0]
    return found_FD


class _Regressions:
    """B regressions on the same design: labels and weights [B, N], ridge and start [B, D]."""

    def __init__(
        self,
        design_ND: FloatArray,
        labels_BN: FloatArray,
        weights_BN: FloatArray,
        ridge_BD: FloatArray,
        start_BD: FloatArray,
        offset: float = 0.0,
    ) -> None:
        import torch

        self.design_ND, self.labels_BN, self.weights_BN, self.ridge_BD, self.start_BD = (
            torch.tensor(each, dtype=torch.float64)
            for each in (design_ND, labels_BN, weights_BN, ridge_BD, start_BD)
        )
        self.offset = offset

    def solve(self, beta_BD: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """The minimum of each, [B, D], searched from coefficients [B, D]."""
        import torch

        logits_BN = self.logits(beta_BD)
        value_B = self.objective(beta_BD, logits_BN)
        for _ in range(MAX_STEPS):
            slope_BD, curvature_BDD = self.derivatives(beta_BD, logits_BN)
            step_BD = torch.linalg.solve(curvature_BDD, slope_BD)
            if bool(((slope_BD * step_BD).sum(dim=1) < tolerance).all()):
                break
            size_B1 = torch.ones(len(beta_BD), 1, dtype=torch.float64)
            while True:
                tried_BD = beta_BD - size_B1 * step_BD
                logits_BN = self.logits(tried_BD)
                tried_B = self.objective(tried_BD, logits_BN)
                rises_B1 = (tried_B > value_B)[:, None] & (size_B1 > SMALLEST_STEP)
                if not bool(rises_B1.any()):
                    break
                size_B1 = torch.where(rises_B1, size_B1 / 2, size_B1)
            beta_BD, value_B = tried_BD, tried_B
        return beta_BD

    def logits(self, beta_BD: Tensor) -> Tensor:
        """Of each prompt, [B, N]."""
        return beta_BD @ self.design_ND.T + self.offset

    def objective(self, beta_BD: Tensor, logits_BN: Tensor) -> Tensor:
        """What is minimised, [B]."""
        import torch

        loss_BN = torch.logaddexp(logits_BN, torch.zeros_like(logits_BN))
        loss_B = (self.weights_BN * (loss_BN - self.labels_BN * logits_BN)).sum(dim=1)
        return loss_B + (self.ridge_BD * (beta_BD - self.start_BD) ** 2).sum(dim=1) / 2

    def derivatives(self, beta_BD: Tensor, logits_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient [B, D] and the Hessian [B, D, D] of the objective."""
        chance_BN = logits_BN.sigmoid()
        slope_BD = (self.weights_BN * (chance_BN - self.labels_BN)) @ self.design_ND
        slope_BD += self.ridge_BD * (beta_BD - self.start_BD)
        variance_BN = self.weights_BN * chance_BN * (1.0 - chance_BN)
        return slope_BD, second_moments(self.design_ND, variance_BN) + self.ridge_BD.diag_embed()


def second_moments(design_ND: Tensor, weights_BN: Tensor) -> Tensor:
    """Sums over rows x of weight * x x^T, [B, D, D]."""
    import torch

    num_inputs, count = design_ND.shape[1], len(weights_BN)
    total = torch.zeros(num_inputs, count * num_inputs, dtype=design_ND.dtype)
    for first in range(0, len(design_ND), ROWS_AT_ONCE):
        cut = slice(first, first + ROWS_AT_ONCE)
        rows, weights_RB = design_ND[cut], weights_BN.T[cut]
        total += rows.T @ (weights_RB[:, :, None] * rows[:, None, :]).flatten(1)
    return total.view(num_inputs, count, num_inputs).transpose(0, 1)
