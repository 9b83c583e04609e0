"""Hook points show what the forward pass computes, and what an intervention names is checked.

References are worked out here in float64 from the weights; the model runs in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stepwell.errors import ConfigError, HookError
from stepwell.model.attention import Attention
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import LOGITS_LAYER, POINTS, Hooks
from stepwell.model.interventions import Intervention, Replace, ZeroHeads
from stepwell.model.transformer import Transformer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
B, T = IDS.shape


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=0)


# --- reading ------------------------------------------------------------------------------------


def test_every_point_has_the_documented_shape(
    hooked: Transformer, record: Callable[..., Any]
) -> None:
    notes, config = record(hooked, IDS), hooked.config
    C, H, D, V = config.width, config.num_heads, config.head_dim, config.vocab_size
    shapes = {
        "residual.before": (B, T, C),
        "attention.pattern": (B, H, T, T),
        "attention.heads": (B, T, H, D),
        "attention.output": (B, T, C),
        "mlp.output": (B, T, C),
        "residual.after": (B, T, C),
    }
    expected = {(point, layer): shape for point, shape in shapes.items() for layer in (0, 1)}
    expected["logits", LOGITS_LAYER] = (B, T, V)
    assert {key: tuple(notes[key].shape) for key in notes.seen} == expected
    assert {point for point, _ in expected} == set(POINTS)
    assert all(torch.equal(at[0], torch.arange(T).expand(B, T)) for at in notes.positions.values())


@pytest.mark.parametrize("hooks", [Hooks(), Hooks([ZeroHeads({}), ZeroHeads({0: []})])])
@torch.no_grad()
def test_idle_hooks_change_no_bit(hooked: Transformer, hooks: Hooks) -> None:
    assert torch.equal(hooked(IDS, hooks=hooks), hooked(IDS))


@torch.no_grad()
def test_reading_any_point_but_the_pattern_changes_no_bit(
    hooked: Transformer, notes: Callable[..., Any]
) -> None:
    taken = notes(*(point for point in POINTS if point != "attention.pattern"))
    assert torch.equal(hooked(IDS, hooks=Hooks(recorders=[taken])), hooked(IDS))
    assert len(taken.seen) == 11


@torch.no_grad()
def test_reading_the_pattern_changes_rounding_only(
    hooked: Transformer, record: Callable[..., Any]
) -> None:
    close(record(hooked, IDS)["logits", LOGITS_LAYER], hooked(IDS))


def test_the_residual_stream_is_the_sum_of_what_is_added(
    hooked: Transformer, record: Callable[..., Any]
) -> None:
    notes = record(hooked, IDS)
    assert torch.equal(notes["residual.after", 0], notes["residual.before", 1])
    for layer in range(2):
        added = notes["attention.output", layer].double() + notes["mlp.output", layer]
        close(notes["residual.before", layer].double() + added, notes["residual.after", layer])
    weight = hooked.embed.weight if hooked.head is None else hooked.head.weight
    last = norm64(hooked.final_norm, notes["residual.after", 1])
    close(last @ weight.detach().double().T, notes["logits", LOGITS_LAYER])


def test_the_attention_output_is_the_projection_of_the_heads(
    hooked: Transformer, record: Callable[..., Any]
) -> None:
    notes = record(hooked, IDS)
    for layer, block in enumerate(hooked.blocks):
        expected = linear64(block.attention.o_proj, notes["attention.heads", layer].flatten(2))
        close(notes["attention.output", layer], expected)


def test_the_mlp_output_is_that_of_the_normalised_stream(
    hooked: Transformer, record: Callable[..., Any]
) -> None:
    notes = record(hooked, IDS)
    for layer, block in enumerate(hooked.blocks):
        middle = notes["residual.before", layer].double() + notes["attention.output", layer]
        x = norm64(block.mlp_norm, middle)
        up = linear64(block.mlp.up, x)
        if hooked.config.gated_mlp:
            gate = linear64(block.mlp.gate, x)
            inner = gate * torch.sigmoid(gate) * up
        else:
            inner = up / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
        close(notes["mlp.output", layer], linear64(block.mlp.down, inner))


def test_pattern_and_heads_equal_attention_worked_out_in_float64(
    hooked: Transformer, record: Callable[..., Any]
) -> None:
    notes = record(hooked, IDS)
    for layer, block in enumerate(hooked.blocks):
        x = norm64(block.attention_norm, notes["residual.before", layer])
        pattern, heads = attention64(hooked.config, layer, block.attention, x)
        close(notes["attention.pattern", layer], pattern)
        close(notes["attention.heads", layer], heads)


def test_another_scale_of_the_scores_is_noticed(
    llama: Transformer, record: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = llama.blocks[0]
    monkeypatch.setattr(block.attention, "scale", 0.4)
    notes = record(llama, IDS)
    x = norm64(block.attention_norm, notes["residual.before", 0])
    pattern, _ = attention64(llama.config, 0, block.attention, x)
    with pytest.raises(AssertionError):
        close(notes["attention.pattern", 0], pattern)


def test_a_pattern_is_causal_and_sums_to_one_in_every_chunk(
    hooked: Transformer, notes: Callable[..., Any], record: Callable[..., Any]
) -> None:
    cache, taken, whole = hooked.new_cache(B), notes("attention.pattern"), record(hooked, IDS)
    rows = [cache.allocate() for _ in range(B)]
    with torch.no_grad():
        for ids in IDS.split([4, 2, 1], dim=1):
            view = cache.append(rows, [ids.shape[1]] * B)
            hooked(ids, view=view, hooks=Hooks(recorders=[taken]))
    for layer in range(hooked.config.num_layers):
        start = 0
        for part in taken.seen["attention.pattern", layer]:
            num_queries, num_keys = part.shape[2:]
            close(part.sum(-1), torch.ones(part.shape[:3]), 1e-6)
            assert not part.triu(start + 1).any()
            expected = whole["attention.pattern", layer][:, :, start : start + num_queries]
            close(part, expected[..., :num_keys])
            start += num_queries


def linear64(linear: torch.nn.Linear, x: Tensor) -> Tensor:
    bias = 0.0 if linear.bias is None else linear.bias.detach().double()
    return x.double() @ linear.weight.detach().double().T + bias


def norm64(norm: torch.nn.Module, x: Tensor) -> Tensor:
    """RMSNorm or LayerNorm, by their definitions."""
    x, weight = x.double(), norm.weight.detach().double()
    if isinstance(norm, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
        bias = norm.bias.detach().double()
    else:
        bias = torch.zeros_like(weight)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * weight + bias


def attention64(
    config: ModelConfig, layer: int, attention: Attention, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Pattern [B, H, T, T] and heads [B, T, H, D], one score at a time."""
    D, share = config.head_dim, config.num_heads // config.num_kv_heads
    q, k, v = (
        linear64(projection, x).unflatten(2, (-1, D))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if config.position == "rope":
        q, k = turn64(q, config.rope_theta), turn64(k, config.rope_theta)
    windowed = layer in config.sliding_layers
    pattern = torch.zeros(B, config.num_heads, T, T, dtype=torch.float64)
    heads = torch.zeros(B, T, config.num_heads, D, dtype=torch.float64)
    for b in range(B):
        for h in range(config.num_heads):
            for t in range(T):
                first = max(0, t - config.sliding_window + 1) if windowed else 0
                scores = k[b, first : t + 1, h // share] @ q[b, t, h] / D**0.5
                weights = scores.exp() / scores.exp().sum()
                pattern[b, h, t, first : t + 1] = weights
                heads[b, t, h] = weights @ v[b, first : t + 1, h // share]
    return pattern, heads


def turn64(x: Tensor, theta: float) -> Tensor:
    """Each pair (d, d + D/2) as a complex number, turned by position * theta ** (-2d / D)."""
    half = x.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(T, dtype=torch.float64), speeds)
    phases = torch.polar(torch.ones_like(angles), angles)
    turned = torch.complex(x[..., :half], x[..., half:]) * phases[None, :, None]
    return torch.cat((turned.real, turned.imag), -1)


# --- declared values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        ZeroHeads({0: [1, 3]}),
        ZeroHeads({0: (1,), 1: (0, 2)}, positions=(0, 7)),
        Replace(point="mlp.output", layer=1, value=0.5),
        Replace(point="attention.heads", layer=0, value=(1.0, 2.0), heads=(1,), positions=(3,)),
    ],
)
def test_an_intervention_survives_json(value: Intervention) -> None:
    kind = type(value)
    again = kind.model_validate_json(value.model_dump_json())
    assert again == value
    assert kind.parse(value.plain()) == value
    assert again.fingerprint == value.fingerprint


def test_json_keys_are_read_as_layers() -> None:
    assert ZeroHeads.parse({"heads": {"0": [1, 3]}}) == ZeroHeads({0: [1, 3]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroHeads(heds={0: [1]}), "no field 'heds'. Did you mean 'heads'?"),
        (lambda: ZeroHeads(), "needs a value for 'heads'"),
        (lambda: ZeroHeads({"first": [1]}), "heads.first is 'first'"),
        (lambda: ZeroHeads({0: [1]}, positions="some"), "positions"),
        (lambda: Replace(point="logits"), "needs a value for 'value'"),
    ],
)
def test_a_malformed_intervention_is_a_config_error(
    make: Callable[[], Intervention], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


def replace(point: str, layer: int | None = 0, **values: Any) -> Callable[[], Replace]:
    where = {} if layer is None else {"layer": layer}
    return lambda: Replace(point=point, **where, **{"value": 0.0, **values})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroHeads({2: [1]}), "layers 0..1, not 2"),
        (lambda: ZeroHeads({-1: [1]}), "layers 0..1, not -1"),
        (lambda: ZeroHeads({0: [1, 4]}), "heads 0..3, not 4"),
        (replace("atention.pattern"), "Did you mean 'attention.pattern'?"),
        (replace("mlp.output", 7), "layers 0..1, not 7"),
        (replace("mlp.output", None), "layers 0..1, not -1"),
        (replace("logits", 1), "logits belong to no layer, not to 1"),
        (replace("mlp.output", heads=(1,)), "mlp.output has no heads"),
        (replace("attention.heads", heads=(4,)), "heads 0..3, not 4"),
        (
            replace("attention.heads", value=(1.0, 2.0)),
            "attention.heads is 4 wide, the value for it 2",
        ),
        (replace("attention.pattern", value=(1.0,) * 16), "is changed by a number, not"),
    ],
)
def test_what_the_model_does_not_have_is_a_hook_error(
    llama: Transformer, make: Callable[[], Intervention], message: str
) -> None:
    with pytest.raises(HookError) as error:
        llama(IDS, hooks=Hooks([make()]))
    assert message in str(error.value)
