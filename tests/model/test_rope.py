"""Rotary positions against transformers (frequencies) and complex numbers in float64 (rotation)."""

from __future__ import annotations

import pytest
import torch

from stepwell.model.config import ModelConfig, RopeScaling
from stepwell.model.rope import RopeTable, rope_frequencies, rotate

CONFIG = ModelConfig(width=64, num_heads=2, context_length=4096, rope_theta=50_000.0)

SCALINGS = [
    RopeScaling(kind="linear", factor=4.0),
    RopeScaling(kind="llama3", factor=8.0, original_context_length=512),
    RopeScaling(
        kind="llama3",
        factor=32.0,
        original_context_length=256,
        low_freq_factor=1.5,
        high_freq_factor=9.0,
    ),
    RopeScaling(kind="yarn", factor=4.0, original_context_length=1024),
    RopeScaling(kind="yarn", factor=4.0, original_context_length=1024, truncate=False),
    RopeScaling(kind="yarn", factor=1.0, original_context_length=1024, beta_fast=20, beta_slow=2),
    RopeScaling(kind="yarn", factor=40.0, original_context_length=4096, attention_factor=0.7),
    RopeScaling(
        kind="yarn", factor=40.0, original_context_length=4096, mscale=0.9, mscale_all_dim=0.6
    ),
]


def reference_frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """What transformers computes for the same rope parameters."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = config.rope_scaling
    assert scaling is not None
    parameters = scaling.model_dump(exclude_none=True, exclude={"kind", "original_context_length"})
    llama = transformers.LlamaConfig(
        hidden_size=config.width,
        num_attention_heads=config.num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        rope_parameters={
            "rope_type": scaling.kind,
            "rope_theta": config.rope_theta,
            "original_max_position_embeddings": scaling.original_context_length,
            **parameters,
        },
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling.kind](llama, torch.device("cpu"))
    return frequencies, factor


def name(scaling: RopeScaling) -> str:
    return f"{scaling.kind}-{scaling.factor:g}"


@pytest.mark.parametrize("scaling", SCALINGS, ids=name)
def test_scaled_frequencies_are_those_of_transformers(scaling: RopeScaling) -> None:
    config = CONFIG.changed(rope_scaling=scaling)
    frequencies, factor = rope_frequencies(config)
    expected, expected_factor = reference_frequencies(config)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)  # float32
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("scaling", [None, *SCALINGS], ids=lambda s: name(s) if s else "none")
def test_rotation_is_multiplication_by_a_complex_phase(scaling: RopeScaling | None) -> None:
    config = CONFIG.changed(rope_scaling=scaling)
    frequencies, factor = rope_frequencies(config)
    x = torch.randn(2, 3, 5, config.head_dim, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 100, 511, 512, 900]])
    rotated = rotate(x, *RopeTable(config).at(positions, 1000, torch.float32))

    real, imaginary = x.double().chunk(2, dim=-1)
    angles = positions.double()[:, None, :, None] * frequencies.double()
    turned = torch.complex(real, imaginary) * torch.polar(torch.full_like(angles, factor), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    # float32 angles of up to 900 radians carry errors of 900 * 2**-24
    torch.testing.assert_close(rotated.double(), expected, atol=3e-4, rtol=0)


def test_unscaled_frequencies_are_a_geometric_series_from_one_turn_a_radian() -> None:
    frequencies, factor = rope_frequencies(CONFIG)
    expected = torch.tensor([50_000.0 ** (-2 * i / 32) for i in range(16)])
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert factor == 1.0


def test_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, CONFIG.head_dim, generator=torch.Generator().manual_seed(0))
    table = RopeTable(CONFIG)

    def score(query: int, key: int) -> float:
        turned = [
            rotate(x, *table.at(torch.tensor([[at]]), 64, torch.float32))
            for x, at in ((q, query), (k, key))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(57, 52), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_the_first_positions_are_rows_of_the_same_table() -> None:
    table = RopeTable(CONFIG)
    first = table.first(6, torch.device("cpu"), torch.float32)
    for short, whole in zip(first, table.at(torch.arange(6)[None], 6, torch.float32), strict=True):
        assert torch.equal(short, whole)


def test_a_longer_table_agrees_with_a_shorter_one() -> None:
    table = RopeTable(CONFIG)
    short = [part.clone() for part in table.first(5, torch.device("cpu"), torch.float32)]
    long = table.first(1000, torch.device("cpu"), torch.float32)
    for a, b in zip(short, long, strict=True):
        assert torch.equal(a, b[:, :, :5])


def test_a_table_made_while_generating_serves_training() -> None:
    table = RopeTable(CONFIG)
    with torch.inference_mode():
        table.first(4, torch.device("cpu"), torch.float32)
    x = torch.randn(1, 1, 4, CONFIG.head_dim, requires_grad=True)
    rotate(x, *table.first(4, torch.device("cpu"), torch.float32)).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_table_has_the_dtype_asked_for(dtype: torch.dtype) -> None:
    cos, sin = RopeTable(CONFIG).first(4, torch.device("cpu"), dtype)
    assert (cos.dtype, sin.dtype) == (dtype, dtype)
