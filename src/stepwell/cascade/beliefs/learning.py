"""How a predictor is learned: regressions, then what bends them, then heads from held-out folds.

Owns the order of the steps, the folds, and the checks of labels and weights. Each step is a module
of its own: logistic.py, mlp.py, heads.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwell.cascade.beliefs.features import Seen
from stepwell.cascade.beliefs.heads import Head, Regressions, Rows, fit_head
from stepwell.cascade.beliefs.mlp import Samples, Trunk, fit_trunks
from stepwell.cascade.beliefs.states import Layout, Standards
from stepwell.cascade.rule.paths import FloatArray
from stepwell.errors import ConfigError, DataError, ShapeError

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Learned:
    """The parts of a predictor, as it has them."""

    layout: Layout
    standards: Standards
    base: FloatArray
    inner: FloatArray
    heads: tuple[Head, ...]


def learn(
    data: Seen, good: npt.ArrayLike, weights: npt.ArrayLike | None, hidden: int, seed: int
) -> Learned:
    """What `Predictor.fit` learns. Torch computes on one thread, so that sums have one order."""
    labels = _labels(good, data)
    counts = _counts(np.ones(len(labels)) if weights is None else weights, len(labels))
    if hidden < 0:
        raise ConfigError(f"hidden is {hidden}, expected 0 or more.")
    with _one_thread():
        return _learn(data, labels, counts, hidden, seed)


def _learn(data: Seen, labels: FloatArray, counts: FloatArray, hidden: int, seed: int) -> Learned:
    layout = Layout(data.features, data.num_stages)
    standards = Standards.of(data, counts)
    base = ((counts[:, None] * labels).sum(axis=0) + 0.5) / (counts.sum() + 1.0)
    samples = _samples(layout, standards.apply(data.flat()), labels, counts, seed)
    lessons = [_rows(samples, layout, number) for number in range(layout.num_heads)]
    regressions = [Regressions.fit(rows, base, FOLDS) for rows in lessons]
    offsets = np.empty((FOLDS + 1, *samples.ways.shape, layout.num_stages))
    for number, (rows, each) in enumerate(zip(lessons, regressions, strict=True)):
        taught = samples.heads == number
        shape = FOLDS + 1, len(labels), taught.sum(), layout.num_stages
        offsets[:, :, taught] = each.log_odds(rows).reshape(shape)
    straight = (Trunk.none(layout.masks.shape[1], layout.num_heads, len(base)),) * (FOLDS + 1)
    trunks = fit_trunks(samples, offsets, hidden, seed) or straight
    heads = tuple(
        fit_head(rows, each, trunks, number, base)
        for number, (rows, each) in enumerate(zip(lessons, regressions, strict=True))
    )
    return Learned(layout, standards, base, trunks[-1].inner, heads)


def _samples(
    layout: Layout, features: FloatArray, labels: FloatArray, counts: FloatArray, seed: int
) -> Samples:
    """The prompts in the states that they are learned from, dealt out to folds at random."""
    random = np.random.default_rng(seed)
    folds = random.permutation(len(labels)) % FOLDS
    states, heads = layout.lessons(len(labels), random)
    always = np.ones((len(labels), 1 + layout.num_stages))
    inputs = np.concatenate([always, features], axis=1)
    return Samples(inputs, layout.masks, states, heads, labels, counts, folds)


def _rows(samples: Samples, layout: Layout, head: int) -> Rows:
    """What one head learns from: its states of all prompts, which share a prompt's weight."""
    states = samples.ways[:, samples.heads == head]
    num_states = states.shape[1]
    masked = samples.inputs[:, None] * samples.masks[states]
    return Rows(
        masked.reshape(-1, masked.shape[2]),
        layout.used(head),
        np.repeat(samples.good, num_states, axis=0),
        np.repeat(samples.counts / num_states, num_states),
        np.repeat(samples.folds, num_states),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch computes on one CPU thread inside of the block."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _labels(good: npt.ArrayLike, data: Seen) -> FloatArray:
    """Labels as [N, K], in [0, 1]."""
    labels = np.asarray(good, dtype=np.float64)
    if labels.shape != (len(data), data.num_stages):
        raise ShapeError(
            f"good is {list(labels.shape)}, expected {[len(data), data.num_stages]}: one label "
            "for each prompt and stage."
        )
    if not ((labels >= 0.0) & (labels <= 1.0)).all():
        raise DataError("good holds numbers that are not between 0 and 1.")
    return labels


def _counts(weights: npt.ArrayLike, num_prompts: int) -> FloatArray:
    """Weights scaled so that they sum to the effective number of prompts."""
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (num_prompts,):
        raise ShapeError(f"weights are {list(given.shape)}, expected [{num_prompts}].")
    if num_prompts and not (np.isfinite(given).all() and given.min() >= 0 and given.any()):
        raise DataError("weights must be finite and 0 or more, and not all 0.")
    scale = given.sum() / (given**2).sum() if num_prompts else 1.0
    counts: FloatArray = given * scale
    return counts
