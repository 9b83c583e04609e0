"""8-bit weights: exact integer products in each group, of inputs rounded to 8 bits themselves.

The kernels are reached through a model without layers, whose norm changes nothing: its logits are
one linear layer of its embeddings.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stepwell.errors import ConfigError
from stepwell.native import library
from stepwell.native.build import INSTRUCTION_SETS, LIBRARY, note_of
from stepwell.native.decoder import (
    BLOCK,
    GROUP,
    Decoder,
    DecoderWeights,
    LinearWeights,
    NormWeights,
    Run,
)
from stepwell.native.library import Library, open_library

SHRINK = 2.0**-20
"""Rows are stored so small beside the norm's eps of 1 that their root mean square rounds to 1."""

SIZES = [(1, 1), (3, 100), (9, 127), (61, 128), (130, 129), (300, 640), (7, 1000)]  # N, K
ROWS = 5
TOLERANCE = 1e-6  # of the sum of the absolute values of what is added up, float32


class Layer(NamedTuple):
    """A linear layer: q [N, K], -128 to 127, a scale for each group of inputs [N, groups]."""

    q: NDArray[np.int64]
    scale: NDArray[np.float32]

    @property
    def groups(self) -> list[slice]:
        """The inputs of each group; the last one may not be full."""
        return [slice(start, start + GROUP) for start in range(0, self.q.shape[1], GROUP)]


def random_layer(size: tuple[int, int]) -> Layer:
    rng = np.random.default_rng(size)
    outputs, inputs = size
    scale = rng.uniform(0.5, 2.0, (outputs, -(-inputs // GROUP))).astype(np.float32)
    return Layer(rng.integers(-128, 128, size), scale)


def random_rows(layer: Layer) -> NDArray[np.float32]:
    """Rows [ROWS, K] whose groups differ much in size."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, layer.q.shape[1])).astype(np.float32)
    for group in layer.groups:
        x[:, group] *= rng.uniform(0.01, 10, (ROWS, 1))
    return x


def reference(layer: Layer, x: NDArray[np.float32]) -> tuple[NDArray[np.float64], ...]:
    """W x for rows x [R, K] that are rounded to 8 bits by group, and W x of all absolute values."""
    total, size = np.zeros((2, len(x), len(layer.q)))
    for group, scale in zip(layer.groups, layer.scale.T, strict=True):
        largest = np.abs(x[:, group]).max(1, keepdims=True)
        steps = np.rint(x[:, group] * (np.float32(127) / largest)).astype(np.int64)
        unit = largest.astype(np.float64) / 127 * scale
        total += unit * (steps @ layer.q[:, group].T)
        size += unit * (np.abs(steps) @ np.abs(layer.q[:, group].T))
    return total, size


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The kernels of this installation, in copies: a library has one instruction set at a time."""
    if library.load() is None:
        pytest.skip(f"no native kernels: {library.unavailable_reason()}")
    folder = tmp_path_factory.mktemp(request.param)
    for path in (library.PLACE, note_of(library.PLACE)):
        shutil.copy(path, folder)
    try:
        found = open_library(folder / LIBRARY, request.param)
    except ConfigError as error:
        pytest.skip(error.problem)
    assert isinstance(found, Library)
    return found


def product(
    kernels: Library, layer: Layer, x: NDArray[np.float32], *, by_channel: object = 1.0
) -> NDArray[np.float32]:
    """W x by the kernels for rows x [R, K], their channels multiplied by `by_channel` before."""
    outputs, inputs = layer.q.shape
    stored = np.full((outputs, len(layer.groups) * GROUP), 255, np.uint8)  # the padding counts not
    stored[:, :inputs] = layer.q + 128
    weights = DecoderWeights(
        num_heads=1, num_kv_heads=1, head_dim=2, mlp_width=1, activation="relu", positions=1,
        embedding=torch.from_numpy(x * np.float32(SHRINK)),
        position_embedding=None, cosines=None, sines=None, layers=[],
        final_norm=NormWeights(torch.full((inputs,), 1 / SHRINK) * by_channel, None, 1.0, False),
        head=LinearWeights(torch.from_numpy(stored), inputs, None, torch.from_numpy(layer.scale)),
    )  # fmt: skip
    rows = [Run([row], 0, [0], wanted=1) for row in range(len(x))]
    return Decoder(kernels, weights).step(rows, torch.empty(1, 0, 2, 1, BLOCK, 2)).logits.numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_equal_the_integer_reference(size: tuple[int, int], kernels: Library) -> None:
    layer = random_layer(size)
    x = random_rows(layer)
    expected, size_of_terms = reference(layer, x)
    assert (np.abs(product(kernels, layer, x) - expected) <= TOLERANCE * size_of_terms).all()


def test_that_inputs_are_rounded_is_seen_by_this_comparison(kernels: Library) -> None:
    layer = random_layer((61, 640))
    x = random_rows(layer)
    scale = layer.scale.repeat(GROUP, axis=1)
    unrounded, (_, size_of_terms) = x.astype(np.float64) @ (layer.q * scale).T, reference(layer, x)
    error = np.abs(product(kernels, layer, x) - unrounded)
    assert (error > 100 * TOLERANCE * size_of_terms).any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_whole_numbers_are_exact(size: tuple[int, int], kernels: Library) -> None:
    layer = random_layer(size)._replace(scale=np.ones((size[0], -(-size[1] // GROUP)), np.float32))
    x = np.random.default_rng(1).integers(-127, 128, (ROWS, size[1]))
    for group in layer.groups:
        x[:, group.start] = 127  # the scale of every group is 1
    assert (product(kernels, layer, x.astype(np.float32)) == x @ layer.q.T).all()


@pytest.mark.parametrize("weight", [-128, -127, 127])
@pytest.mark.parametrize("value", [-127, 127])
def test_the_largest_numbers_do_not_overflow(weight: int, value: int, kernels: Library) -> None:
    layer = Layer(np.full((5, 1000), weight), np.ones((5, 8), np.float32))
    found = product(kernels, layer, np.full((3, 1000), value, np.float32))
    assert (found == 1000 * weight * value).all()


def test_company_moves_no_bit(kernels: Library) -> None:
    layer = random_layer((130, 300))
    x = np.concatenate([random_rows(layer)] * 3)
    alone = [product(kernels, layer, row[None])[0] for row in x]
    for rows in range(2, len(x) + 1):
        assert np.array_equal(product(kernels, layer, x[:rows]), alone[:rows])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_out_as_nan(broken: float, kernels: Library) -> None:
    layer = random_layer((9, 300))
    x = random_rows(layer)
    sound = product(kernels, layer, x)
    x[3, 200] = broken
    found = product(kernels, layer, x)
    assert np.isnan(found[3]).all()
    assert np.array_equal(np.delete(found, 3, 0), np.delete(sound, 3, 0))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 150, 299])
def test_one_channel_that_is_not_finite_is_enough(
    broken: float, channel: int, kernels: Library
) -> None:
    layer = random_layer((9, 300))
    layer.q[:, channel] = 0  # even where its weight is none
    factors = torch.ones(300)
    factors[channel] = broken
    assert np.isnan(product(kernels, layer, random_rows(layer), by_channel=factors)).all()


@pytest.mark.parametrize("factor", [0.0, 2.0**-130], ids=["zero", "too small to be scaled"])
def test_groups_of_nothing_add_nothing(factor: float, kernels: Library) -> None:
    layer = random_layer((9, 300))
    x = random_rows(layer)
    factors = torch.ones(300)
    factors[GROUP : 2 * GROUP] = factor
    without = layer._replace(scale=layer.scale * np.array([1, 0, 1], np.float32))
    found = product(kernels, layer, x, by_channel=factors)
    assert np.array_equal(found, product(kernels, without, x))
