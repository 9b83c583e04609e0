"""How likely each stage's answer is good enough, given what was seen so far.

Beliefs for every stage, run or not, after any set of stages: earlier answers are scored anew when
later ones arrive. Owns the beliefs; what is done with them is stopping.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from stepwell.cascade.calibration import calibrate, fit_curve
from stepwell.cascade.features import FeatureSet, Seen
from stepwell.cascade.logistic import fit_logistic, log_loss, logit, sigmoid
from stepwell.cascade.mlp import Samples, Trunk, fit_trunks
from stepwell.cascade.paths import FloatArray, IntArray

FOLDS = 5
RIDGES = (1.0, 10.0, 100.0)
FARTHEST = 4.0
STRONGEST = 1e6
MOST_OWN_HEADS = 4
FEWEST_BENT = 50
SHARED = 3
USE_TRUNK = True
MODE = "ev"
BLOCK = "feature"
LEAK = False


@dataclass(frozen=True, eq=False)
class Head:
    columns: IntArray  # [C]
    weights: FloatArray  # [K, C + H]
    spread: FloatArray
    strength: FloatArray
    curves: FloatArray

    def beliefs(self, design, base):
        raw = sigmoid(design @ self.weights.T)
        like = 1.0 / ((design @ self.spread) * design).sum(axis=-1, keepdims=True)
        shrunk = (like * raw + self.strength * base) / (like + self.strength)
        return sigmoid(calibrate(logit(shrunk), logit(base), self.curves))


@dataclass(frozen=True, eq=False)
class Predictor:
    feature_set: FeatureSet
    num_stages: int
    centre: FloatArray
    scale: FloatArray
    base: FloatArray
    inner: FloatArray
    heads: tuple[Head, ...]
    info: object = None

    @classmethod
    def fit(cls, data: Seen, good, weights=None, *, hidden=64, seed=0) -> Self:
        labels = np.asarray(good, float)
        N, K = labels.shape
        counts = _counts(np.ones(len(labels)) if weights is None else weights, len(labels))
        inputs, centre, scale = _standardised(data, counts)
        base = (counts @ labels + 0.5) / (counts.sum() + 1.0)
        masks = np.stack([_mask(data.features, state, K) for state in range(1 << K)])
        rng = np.random.default_rng(seed)
        folds = rng.permutation(N) % FOLDS
        ways, heads = _ways(N, K, rng)
        samples = Samples(inputs, masks, ways, heads, labels, counts)
        nheads = heads.max() + 1
        offsets = np.zeros((FOLDS + 1, N, ways.shape[1], K))
        linear, columns, ridges = [], [], []
        import time

        t = time.time()
        for h in range(nheads):
            cs = np.flatnonzero(heads == h)
            m = masks[ways[:, cs]]  # [N, m, D]
            used = np.flatnonzero(_used(masks[np.unique(ways[:, cs])], K)) if N else np.array([0])
            x = (inputs[:, None] * m)[..., used].reshape(-1, len(used))
            lab = np.repeat(labels, len(cs), 0)
            w = np.repeat(counts, len(cs)) / len(cs)
            fo = np.repeat(folds, len(cs))
            global KINDS, BLOCK
            ob = BLOCK
            BLOCK = "kind"
            KINDS = BLOCKS(data.features, K)[used]
            BLOCK = ob
            beta, r = (_linear if MODE == "cv" else _linear_ev)(
                x, lab, w, fo, base, BLOCKS(data.features, K)[used]
            )
            offsets[:, :, cs] = (beta @ x.T).reshape(FOLDS + 1, K, N, len(cs)).transpose(0, 2, 3, 1)
            linear.append(beta)
            columns.append(used)
            ridges.append(r)
        t1 = time.time()
        trunks = (
            fit_trunks(samples, offsets, folds, hidden, seed)
            if USE_TRUNK and N >= FEWEST_BENT
            else None
        )
        t2 = time.time()
        if trunks is None:
            trunks = [Trunk(np.zeros((inputs.shape[1], 0)), np.zeros((nheads, K, 0)))] * (FOLDS + 1)
        out = []
        for h in range(nheads):
            cs = np.flatnonzero(heads == h)
            m = masks[ways[:, cs]]
            x = (inputs[:, None] * m).reshape(-1, inputs.shape[1])
            lab = np.repeat(labels, len(cs), 0)
            w = np.repeat(counts, len(cs)) / len(cs)
            fo = np.repeat(folds, len(cs))
            raw, like = np.empty(lab.shape), np.empty((len(lab), 1))
            for f in range(FOLDS + 1):
                d = np.concatenate([x[:, columns[h]], trunks[f].hidden(x)], 1)
                wt = np.concatenate([linear[h][f], trunks[f].outer[h]], 1)
                pen = np.full(d.shape[1], 10.0)
                pen[: len(columns[h])] = ridges[h]
                pen[0] = 1.0
                ww = w * (fo != f)
                spread = np.linalg.inv((d.T * ww) @ d + np.diag(pen))
                o = fo == f
                raw[o] = sigmoid(d[o] @ wt.T)
                like[o] = 1 / ((d[o] @ spread) * d[o]).sum(1, keepdims=True)
            strength = _strength(raw, lab, w, base)
            shrunk = logit((like * raw + strength * base) / (like + strength))
            curves = np.stack(
                [fit_curve(shrunk[:, j], lab[:, j], w, float(logit(base[j]))) for j in range(K)]
            )
            out.append(Head(columns[h], wt, spread, strength, curves))
        info = dict(
            hidden=trunks[-1].inner.shape[1],
            linear_s=t1 - t,
            trunk_s=t2 - t1,
            rest=time.time() - t2,
            ridges=ridges,
        )
        return cls(data.features, K, centre, scale, base, trunks[-1].inner, tuple(out), info)

    def beliefs(self, seen, state):
        x = _inputs(seen, self.centre, self.scale) * _mask(self.feature_set, state, self.num_stages)
        h = state if self.num_stages <= MOST_OWN_HEADS else state.bit_length()
        head = self.heads[h]
        d = np.concatenate([x[:, head.columns], np.tanh(x @ self.inner)], 1)
        return head.beliefs(d, self.base)


def _used(masks, K):
    used = masks.any(0)
    used[1 : 1 + K] &= ~masks[:, 1 : 1 + K].all(0)
    return used


def _mask(features, state, K):
    run = state >> np.arange(K) & 1 == 1
    return np.concatenate([[True], run, features.known(state, K)])


def _ways(N, K, rng):
    if K <= MOST_OWN_HEADS:
        a = np.arange(1 << K)
        return np.tile(a, (N, 1)), a
    ways, heads = [], []
    for k in range(K + 1):
        top = 1 << k >> 1
        for c in range(SHARED if k > 2 else max(k, 1)):
            low = np.full(N, max(top - 1, 0)) if c == 0 else rng.integers(0, max(top, 1), N)
            ways.append(low | top)
            heads.append(k)
    return np.stack(ways, 1), np.array(heads)


def _linear(x, labels, counts, folds, base, blocks=None):
    K = labels.shape[1]
    N, D = x.shape
    start = np.zeros((K, D))
    start[:, 0] = logit(base)
    w = np.stack([counts * (folds != f) for f in range(FOLDS + 1)])
    pen = np.repeat(np.array(RIDGES)[:, None], D, 1)
    pen[:, 0] = 1
    B = (len(RIDGES), FOLDS + 1, K)
    beta = fit_logistic(
        x,
        np.broadcast_to(labels.T, (*B, N)),
        np.broadcast_to(w[None, :, None], (*B, N)),
        np.broadcast_to(pen[:, None, None], (*B, D)),
        np.broadcast_to(start, (*B, D)),
    )
    losses = []
    for r in range(len(RIDGES)):
        total = 0.0
        for f in range(FOLDS):
            o = folds == f
            total += sum(log_loss(x[o] @ beta[r, f, j], labels[o, j], counts[o]) for j in range(K))
        losses.append(total)
    r = int(np.argmin(losses))
    return beta[r], RIDGES[r]


def _counts(weights, num_prompts):
    given = np.asarray(weights, dtype=np.float64)
    scale = given.sum() / (given**2).sum() if num_prompts else 1.0
    return given * scale


def _standardised(data, counts):
    flat = data.flat()
    known = np.isfinite(flat)
    share = known * counts[:, None]
    total = np.maximum(share.sum(axis=0), 1e-300)
    values = np.where(known, flat, 0.0)
    centre = (share * values).sum(axis=0) / total
    spread = np.sqrt((share * (values - centre) ** 2).sum(axis=0) / total)
    scale = np.where(spread > 1e-12, spread, 1.0)
    return _inputs(data, centre, scale), centre, scale


def _inputs(data, centre, scale):
    z = np.clip((data.flat() - centre) / scale, -FARTHEST, FARTHEST)
    return np.concatenate([np.ones((len(z), 1 + data.num_stages)), np.where(np.isnan(z), 0, z)], 1)


def _strength(raw, good, counts, base):
    if len(good) < 2:
        return np.full(len(base), STRONGEST)
    share = counts / counts.sum()
    shared = share @ ((raw - share @ raw) * (good - share @ good))
    needed = base * (1.0 - base) / np.maximum(shared, 1e-12) - 1.0
    return np.clip(needed, 0.0, STRONGEST)


def BLOCKS(fs, K):
    P_, F, G = len(fs.prompt_names), len(fs.answer_names), len(fs.pair_names)
    later, earlier = np.tril_indices(K, -1)
    if BLOCK == "kind":
        flat = [2] * P_ + [3] * (K * F) + [4] * (len(later) * G)
    elif BLOCK == "stage":
        flat = (
            [2] * P_
            + [3 + k for k in range(K) for _ in range(F)]
            + [3 + K + l for l in later for _ in range(G)]
        )
    elif BLOCK == "feature":
        n = P_ + K * F + len(later) * G
        flat = list(range(2, 2 + n))
    return np.array([0] + [1] * K + flat)


def _linear_ev(x, labels, counts, folds, base, blocks):
    import sys

    sys.path.insert(0, "/tmp/predictor")
    from ev import evidence

    K = labels.shape[1]
    N, D = x.shape
    start = np.zeros((K, D))
    start[:, 0] = logit(base)
    w = np.stack([counts * (folds != f) for f in range(FOLDS + 1)])
    if LEAK:
        ridge, beta = evidence(x, labels, w[-1:], start, blocks)
        ridge = np.repeat(ridge, FOLDS + 1, 0)
    else:
        ridge, beta = evidence(x, labels, w, start, blocks)
    B = (FOLDS + 1, K)
    beta = fit_logistic(
        x,
        np.broadcast_to(labels.T, (*B, N)),
        np.broadcast_to(w[:, None], (*B, N)),
        np.broadcast_to(ridge[:, None], (*B, D)),
        np.broadcast_to(start, (*B, D)),
        guess=np.broadcast_to(beta, (*B, D)),
    )
    ridge = ridge[-1]
    return beta, ridge
