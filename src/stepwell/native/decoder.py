"""The Python face of the decode kernels: weights as pointers, one call a step.

Owns the ctypes mirror of source/stepwell.h, the buffers of a step and the checks that keep the
kernels from reading beyond them. Knows tensors, but no model: what a model's weights mean to the
kernels is told by `DecoderWeights`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepwell.errors import CacheError, PromptError, ShapeError
from stepwell.native.build import BASELINE
from stepwell.native.hooks import HookTable, Touch
from stepwell.native.library import Library, threads

BLOCK: Final = 64
GROUP: Final = 128
FORMATS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
ACTIVATIONS: Final = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}

WORTH_A_THREAD: Final = 2**21
"""Products of a step for which another thread saves more than its barriers cost."""

_Pointer, _Int = ctypes.c_void_p, ctypes.c_int32


@dataclass(frozen=True)
class LinearWeights:
    """y = W x + bias: weight [N, K], bias [N].

    8-bit weights are q + 128 in uint8 [N, groups * GROUP], with scale [N, groups], float32.
    """

    weight: Tensor
    inputs: int
    bias: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class NormWeights:
    """RMSNorm's or, where `centred`, LayerNorm's weight and bias [C]."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool


@dataclass(frozen=True)
class LayerWeights:
    """One layer: its norms, its linear layers, how its attention scores are scaled and windowed."""

    attention_norm: NormWeights
    mlp_norm: NormWeights
    q_norm: NormWeights | None
    k_norm: NormWeights | None
    q: LinearWeights
    k: LinearWeights
    v: LinearWeights
    o: LinearWeights
    gate: LinearWeights | None
    up: LinearWeights
    down: LinearWeights
    score_scale: float
    window: int | None


@dataclass(frozen=True)
class DecoderWeights:
    """A whole model. `cosines` and `sines` [positions, D] are those of rotary positions."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    activation: str
    positions: int
    embedding: Tensor
    position_embedding: Tensor | None
    cosines: Tensor | None
    sines: Tensor | None
    layers: Sequence[LayerWeights]
    final_norm: NormWeights
    head: LinearWeights


class Run(NamedTuple):
    """Neighbouring positions of one sequence: tokens, place of the first, the sequence's blocks.

    Logits are wanted after the last `wanted` of them.
    """

    ids: Sequence[int]
    start: int
    table: Sequence[int]
    wanted: int = 0


class Step(NamedTuple):
    """What comes out at the positions where logits were wanted, in order.

    logits [N, V] float32; best: the lowest id with the highest logit; sound: whether no logit is
    NaN and the highest is finite.
    """

    logits: Tensor
    best: list[int]
    sound: list[bool]


class Decoder:
    """Runs steps of one model. The weights stay where they are and must not move.

    wide: whether the kernels have wide vectors, with which they outrun torch at any number of rows.
    """

    def __init__(self, library: Library, weights: DecoderWeights) -> None:
        self._handle = declared(library)
        self.wide = library.instruction_set != BASELINE
        self._kept: list[Any] = [weights]  # what the pointers below point to
        self._num_ids, self._width = weights.embedding.shape
        self._vocab_size = weights.head.weight.shape[0]
        self._positions, self._num_heads = weights.positions, weights.num_heads
        self._dtype = weights.embedding.dtype
        self._block_shape = (len(weights.layers), 2, weights.num_kv_heads, BLOCK, weights.head_dim)
        self._model = self._describe(weights)
        self._num_weights = _num_weights(weights)
        self._capacity = self._threads = 0

    def step(self, runs: Sequence[Run], cache: Tensor, touches: Sequence[Touch] = ()) -> Step:
        """Compute all runs; their keys and values go to `cache` [blocks, L, 2, G, BLOCK, D].

        Runs of one sequence see each other's keys where the earlier positions come first: each
        position attends to those up to its own. touches: what is read or changed on the way; their
        rows are the positions of all runs, one after another. Rows that none names keep their bits.

        Raises CacheError where a run reaches beyond its table or the model's positions, or its
        table beyond the cache; PromptError for an id that is no token; ShapeError for a cache of
        another model. Nothing is computed then.
        """
        self._check_cache(cache)
        rows = sum(len(run.ids) for run in runs)
        self._reserve(rows)
        wanted = self._fill(runs, len(cache))
        logits = torch.empty(wanted, self._vocab_size, dtype=torch.float32, device="cpu")
        self._step.rows = rows
        self._step.cache = cache.data_ptr()
        self._step.logits = logits.data_ptr()
        table = HookTable(touches, self._block_shape[0], self._num_heads) if touches else None
        self._step.hooks = None if table is None else table.table.ctypes.data
        self._step.hook_starts = None if table is None else table.starts.ctypes.data
        self._handle.stepwell_run(self._model, self._step, self._threads_for(rows))
        highest = self._best_logit[:wanted]
        return Step(logits, self._best[:wanted].tolist(), np.isfinite(highest).tolist())

    def _threads_for(self, rows: int) -> int:
        """As many threads as have enough to do between two barriers."""
        return min(self._threads, 1 + rows * self._num_weights // WORTH_A_THREAD)

    def _fill(self, runs: Sequence[Run], num_blocks: int) -> int:
        """Write the runs into the buffers of the step; returns how many logits are wanted."""
        end = 0
        for run in runs:
            blocks = self._blocks(run, num_blocks)
            rows = slice(end, end := end + len(run.ids))
            self._tables[rows, : len(blocks)] = blocks
            self._ids[rows] = run.ids
            self._places[rows] = self._every_place[run.start : run.start + len(run.ids)]
            self._wanted[rows] = 0
            self._wanted[end - run.wanted : end] = 1
        return sum(run.wanted for run in runs)

    def _blocks(self, run: Run, num_blocks: int) -> Sequence[int]:
        """The part of a run's table that is needed, once all of the run was found in order."""
        ids, start, table, _ = run
        last = start + len(ids) - 1
        if start < 0 or last >= min(self._positions, BLOCK * len(table)):
            outside = start if start < 0 else last
            raise CacheError(
                f"Position {outside} lies beyond {len(table)} blocks of {BLOCK} positions"
                f" or the model's {self._positions}."
            )
        blocks = table[: last // BLOCK + 1]
        if min(blocks) < 0 or max(blocks) >= num_blocks:
            raise CacheError(f"The blocks {list(blocks)} are not all in a cache of {num_blocks}.")
        if min(ids) < 0 or max(ids) >= self._num_ids:
            foreign = next(each for each in ids if not 0 <= each < self._num_ids)
            raise PromptError(
                f"Token id {foreign} is not in the model's vocabulary of {self._num_ids}."
            )
        return blocks

    def _check_cache(self, cache: Tensor) -> None:
        fits = cache.shape[1:] == self._block_shape and cache.dtype == self._dtype
        if not (fits and cache.is_contiguous() and cache.is_cpu):
            expected = ", ".join(map(str, self._block_shape))
            raise ShapeError(
                f"The cache is {list(cache.shape)} in {cache.dtype} on {cache.device}, expected"
                f" [blocks, {expected}] in {self._dtype} on the CPU, contiguous.",
                fix="make it with the model's new_cache.",
            )

    def _reserve(self, rows: int) -> None:
        """Make the buffers for steps of this many rows on as many threads as there are now."""
        if rows <= self._capacity and threads() == self._threads:
            return
        self._capacity, self._threads = max(rows, self._capacity), threads()
        size = self._handle.stepwell_workspace_bytes(self._model, self._capacity, self._threads)
        self._workspace = np.empty(size, np.uint8)
        self._every_place = np.arange(self._positions, dtype=np.int32)
        self._ids, self._places = np.empty((2, self._capacity), np.int32)
        self._tables = np.empty((self._capacity, -(-self._positions // BLOCK)), np.int32)
        self._wanted = np.empty(self._capacity, np.uint8)
        self._best = np.empty(self._capacity, np.int32)
        self._best_logit = np.empty(self._capacity, np.float32)
        self._step = _Step(
            table_width=self._tables.shape[1],
            ids=self._ids.ctypes.data,
            positions=self._places.ctypes.data,
            tables=self._tables.ctypes.data,
            wanted=self._wanted.ctypes.data,
            best=self._best.ctypes.data,
            best_logit=self._best_logit.ctypes.data,
            workspace=self._workspace.ctypes.data,
        )

    def _describe(self, weights: DecoderWeights) -> _Model:
        layers = (_Layer * len(weights.layers))(*map(self._layer, weights.layers))
        self._kept.append(layers)
        return _Model(
            width=self._width,
            num_heads=weights.num_heads,
            num_kv_heads=weights.num_kv_heads,
            head_dim=weights.head_dim,
            mlp_width=weights.mlp_width,
            num_layers=len(weights.layers),
            vocab_size=self._vocab_size,
            activation=ACTIVATIONS[weights.activation],
            float_format=FORMATS[weights.embedding.dtype],
            positions=weights.positions,
            embedding=self._pointer(weights.embedding),
            position_embedding=self._pointer(weights.position_embedding),
            cosines=self._floats(weights.cosines),
            sines=self._floats(weights.sines),
            final_norm=self._norm(weights.final_norm),
            head=self._linear(weights.head),
            layers=ctypes.addressof(layers),
        )

    def _layer(self, layer: LayerWeights) -> _Layer:
        for readers in ((layer.q, layer.k, layer.v), (layer.gate or layer.up, layer.up)):
            assert len({linear.weight.dtype for linear in readers}) == 1, "they share their input"
        return _Layer(
            *map(self._norm, (layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm)),
            *map(self._linear, (layer.q, layer.k, layer.v, layer.o)),
            *map(self._linear, (layer.gate, layer.up, layer.down)),
            score_scale=layer.score_scale,
            window=layer.window or 0,
        )

    def _linear(self, linear: LinearWeights | None) -> _Linear:
        if linear is None:
            return _Linear()
        return _Linear(
            weight=self._pointer(linear.weight),
            scale=self._floats(linear.scale),
            bias=self._floats(linear.bias),
            outputs=linear.weight.shape[0],
            inputs=linear.inputs,
            format=FORMATS[linear.weight.dtype],
        )

    def _norm(self, norm: NormWeights | None) -> _Norm:
        if norm is None:
            return _Norm()
        weight, bias = self._floats(norm.weight), self._floats(norm.bias)
        return _Norm(weight=weight, bias=bias, centred=norm.centred, eps=norm.eps)

    def _floats(self, tensor: Tensor | None) -> int | None:
        return self._pointer(None if tensor is None else tensor.detach().float())

    def _pointer(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor, made contiguous and kept alive; None for none."""
        if tensor is None:
            return None
        settled = tensor.detach().contiguous()
        self._kept.append(settled)
        return settled.data_ptr()


def _num_weights(weights: DecoderWeights) -> int:
    """Number of weights in the matrices that every row is multiplied with."""
    linears = [weights.head]
    for layer in weights.layers:
        linears += [layer.q, layer.k, layer.v, layer.o, layer.up, layer.down]
        linears += [] if layer.gate is None else [layer.gate]
    return sum(linear.weight.numel() for linear in linears)


def declared(library: Library) -> ctypes.CDLL:
    """The library's handle, with the C types of the functions that are called here."""
    handle = library.handle
    handle.stepwell_workspace_bytes.restype = ctypes.c_int64
    handle.stepwell_workspace_bytes.argtypes = [ctypes.POINTER(_Model), _Int, _Int]
    handle.stepwell_run.restype = None
    handle.stepwell_run.argtypes = [ctypes.POINTER(_Model), ctypes.POINTER(_Step), _Int]
    return handle


class _Linear(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("weight", "scale", "bias")),
        *((name, _Int) for name in ("outputs", "inputs", "format")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", _Pointer),
        ("bias", _Pointer),
        ("centred", _Int),
        ("eps", ctypes.c_float),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, _Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("score_scale", ctypes.c_float),
        ("window", _Int),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, _Int)
            for name in (
                *("width", "num_heads", "num_kv_heads", "head_dim", "mlp_width", "num_layers"),
                *("vocab_size", "activation", "float_format", "positions"),
            )
        ),
        *((name, _Pointer) for name in ("embedding", "position_embedding", "cosines", "sines")),
        ("final_norm", _Norm),
        ("head", _Linear),
        ("layers", _Pointer),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, _Int) for name in ("rows", "table_width", "first_row")),
        *(
            (name, _Pointer)
            for name in (
                *("ids", "positions", "tables", "wanted", "cache"),
                *("logits", "best", "best_logit", "workspace", "hooks", "hook_starts"),
            )
        ),
    )
