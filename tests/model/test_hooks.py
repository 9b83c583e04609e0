"""Hook points show what the forward pass computes, and an intervention changes exactly that.

References are worked out here in float64 from the weights; the model runs in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.errors import ConfigError, HookError
from stepwell.model.attention import Attention
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import LOGITS_LAYER, POINTS, Hooks, Intervention, Replace, ZeroHeads
from stepwell.model.transformer import Transformer

SMALL = ModelConfig(vocab_size=17, context_length=24, width=16, num_layers=2, num_heads=4)
SHAPES: Mapping[str, ModelConfig] = {
    "llama": SMALL,
    "gpt2": SMALL.changed(
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    ),
    "qwen": SMALL.changed(num_kv_heads=2, qkv_bias=True, head_dim=6, tie_embeddings=False),
    "mistral": SMALL.changed(num_kv_heads=1, sliding_window=4, sliding_layers=(0,)),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
B, T = IDS.shape


class Notes:
    """A recorder that keeps everything it is shown at some points."""

    def __init__(self, *points: str) -> None:
        self.points = points or POINTS
        self.seen: dict[tuple[str, int], list[Tensor]] = {}
        self.positions: dict[tuple[str, int], list[Tensor]] = {}

    def wants(self, point: str, layer: int) -> bool:
        return point in self.points

    def take(self, point: str, layer: int, value: Tensor, positions_BT: Tensor) -> None:
        self.seen.setdefault((point, layer), []).append(value.detach().clone())
        self.positions.setdefault((point, layer), []).append(positions_BT.clone())

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        (value,) = self.seen[key]
        return value


def build(config: ModelConfig) -> Transformer:
    """A random model, biases and norms included."""
    model = Transformer(config)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def run(model: Transformer, *interventions: Intervention, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids, hooks=Hooks(interventions))


def record(
    model: Transformer, *interventions: Intervention, points: Sequence[str] = POINTS
) -> Notes:
    notes = Notes(*points)
    with torch.no_grad():
        model(IDS, hooks=Hooks(interventions, [notes]))
    return notes


def run_cached(model: Transformer, *interventions: Intervention, chunk: int = 1) -> Tensor:
    """The same logits, `chunk` positions at a time."""
    cache, hooks, parts = model.new_cache(B), Hooks(interventions), []
    rows = [cache.allocate() for _ in range(B)]
    with torch.no_grad():
        for ids in IDS.split(chunk, dim=1):
            parts.append(model(ids, view=cache.append(rows, [ids.shape[1]] * B), hooks=hooks))
    return torch.cat(parts, 1)


def run_ragged(model: Transformer, *interventions: Intervention) -> Tensor:
    """The same logits, with the rows out of step: 5 and 2 positions, then 2 and 5."""
    cache, hooks = model.new_cache(B), Hooks(interventions)
    rows = [cache.allocate() for _ in range(B)]
    first = torch.stack((IDS[0, :5], F.pad(IDS[1, :2], (0, 3))))
    second = torch.stack((F.pad(IDS[0, 5:], (0, 3)), IDS[1, 2:]))
    with torch.no_grad():
        a = model(first, view=cache.append(rows, [5, 2]), hooks=hooks)
        b = model(second, view=cache.append(rows, [2, 5]), hooks=hooks)
    return torch.stack((torch.cat((a[0], b[0, :2])), torch.cat((a[1, :2], b[1]))))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=0)


# --- reading ------------------------------------------------------------------------------------


@every_shape
def test_every_point_has_the_documented_shape(config: ModelConfig) -> None:
    notes = record(build(config))
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
@every_shape
def test_idle_hooks_change_no_bit(config: ModelConfig, hooks: Hooks) -> None:
    model = build(config)
    with torch.no_grad():
        assert torch.equal(model(IDS, hooks=hooks), model(IDS))


@every_shape
def test_reading_any_point_but_the_pattern_changes_no_bit(config: ModelConfig) -> None:
    model = build(config)
    notes = Notes(*(point for point in POINTS if point != "attention.pattern"))
    with torch.no_grad():
        assert torch.equal(model(IDS, hooks=Hooks(recorders=[notes])), model(IDS))


@every_shape
def test_reading_the_pattern_changes_rounding_only(config: ModelConfig) -> None:
    model = build(config)
    close(record(model)["logits", LOGITS_LAYER], run(model))


@every_shape
def test_the_residual_stream_is_the_sum_of_what_is_added(config: ModelConfig) -> None:
    model = build(config)
    notes = record(model)
    assert torch.equal(notes["residual.after", 0], notes["residual.before", 1])
    for layer in range(2):
        added = notes["attention.output", layer].double() + notes["mlp.output", layer]
        close(notes["residual.before", layer].double() + added, notes["residual.after", layer])
    weight = model.embed.weight if model.head is None else model.head.weight
    last = norm64(model.final_norm, notes["residual.after", 1])
    close(last @ weight.double().T, notes["logits", LOGITS_LAYER])


@every_shape
def test_the_attention_output_is_the_projection_of_the_heads(config: ModelConfig) -> None:
    model = build(config)
    notes = record(model)
    for layer, block in enumerate(model.blocks):
        projection = block.attention.o_proj
        expected = (
            notes["attention.heads", layer].double().flatten(2) @ projection.weight.double().T
        )
        expected = expected if projection.bias is None else expected + projection.bias.double()
        close(notes["attention.output", layer], expected)


@every_shape
def test_the_mlp_output_is_that_of_the_normalised_stream(config: ModelConfig) -> None:
    model = build(config)
    notes = record(model)
    for layer, block in enumerate(model.blocks):
        middle = notes["residual.before", layer].double() + notes["attention.output", layer]
        x = norm64(block.mlp_norm, middle)
        up = linear64(block.mlp.up, x)
        if config.gated_mlp:
            gate = linear64(block.mlp.gate, x)
            inner = gate * torch.sigmoid(gate) * up
        else:
            inner = up / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
        close(notes["mlp.output", layer], linear64(block.mlp.down, inner))


@every_shape
def test_pattern_and_heads_equal_attention_worked_out_in_float64(config: ModelConfig) -> None:
    model = build(config)
    notes = record(model)
    for layer, block in enumerate(model.blocks):
        x = norm64(block.attention_norm, notes["residual.before", layer])
        pattern, heads = attention64(config, layer, block.attention, x)
        close(notes["attention.pattern", layer], pattern)
        close(notes["attention.heads", layer], heads)


def test_another_scale_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SMALL)
    for block in model.blocks:
        monkeypatch.setattr(block.attention, "scale", 0.4)
    notes, block = record(model), model.blocks[0]
    x = norm64(block.attention_norm, notes["residual.before", 0])
    pattern, _ = attention64(SMALL, 0, block.attention, x)
    with pytest.raises(AssertionError):
        close(notes["attention.pattern", 0], pattern)


@every_shape
def test_a_pattern_is_causal_and_sums_to_one(config: ModelConfig) -> None:
    model = build(config)
    cache, notes = model.new_cache(B), Notes("attention.pattern")
    rows = [cache.allocate() for _ in range(B)]
    with torch.no_grad():
        for ids in IDS.split([4, 2, 1], dim=1):
            view = cache.append(rows, [ids.shape[1]] * B)
            model(ids, view=view, hooks=Hooks(recorders=[notes]))
    whole = record(model)
    for layer in range(config.num_layers):
        start = 0
        for part in notes.seen["attention.pattern", layer]:
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
    phases = torch.polar(
        torch.ones(T, half, dtype=torch.float64), torch.outer(torch.arange(T), speeds)
    )
    turned = torch.complex(x[..., :half], x[..., half:]) * phases[None, :, None]
    return torch.cat((turned.real, turned.imag), -1)


# --- zeroing heads ------------------------------------------------------------------------------

CHOSEN = {0: (1, 3), 1: (0,)}


def without_columns(model: Transformer, heads: Mapping[int, Sequence[int]]) -> Transformer:
    """A copy whose output projections ignore some heads."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for layer, chosen in heads.items():
            weight = pruned.blocks[layer].attention.o_proj.weight
            by_head = weight.view(weight.shape[0], pruned.config.num_heads, -1)
            by_head[:, list(chosen)] = 0
    return pruned


@every_shape
def test_zeroing_a_head_is_zeroing_its_columns(config: ModelConfig) -> None:
    model = build(config)
    pruned, zero = without_columns(model, CHOSEN), ZeroHeads(CHOSEN)
    close(run(model, zero), run(pruned), 1e-6)
    for chunk in (1, 3):
        close(run_cached(model, zero, chunk=chunk), run_cached(pruned, chunk=chunk), 1e-6)
    close(run_ragged(model, zero), run_ragged(pruned), 1e-6)
    assert (run(pruned) - run(model)).abs().max() > 1e-2


@every_shape
@pytest.mark.parametrize("positions", [(0,), (2, 5), (6,), (40,), ()])
def test_a_head_is_zeroed_at_the_chosen_positions_only(
    config: ModelConfig, positions: tuple[int, ...]
) -> None:
    model = build(config)
    zero = ZeroHeads(CHOSEN, positions=positions)
    here = [position for position in positions if position < T]

    def silence(module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        by_head = inputs[0].clone().unflatten(2, (config.num_heads, -1))
        for head in module.silenced:
            by_head[:, here, head] = 0
        return (by_head.flatten(2),)

    expected_model = copy.deepcopy(model)
    for layer, heads in CHOSEN.items():
        projection = expected_model.blocks[layer].attention.o_proj
        projection.silenced = heads
        projection.register_forward_pre_hook(silence)
    expected = run(expected_model)
    close(run(model, zero), expected, 1e-6)
    close(run_cached(model, zero), expected)
    close(run_cached(model, zero, chunk=3), expected)
    close(run_ragged(model, zero), expected)
    untouched = slice(0, here[0] if here else T)
    assert torch.equal(run(model, zero)[:, untouched], run(model)[:, untouched])


def test_zeroing_another_head_is_noticed() -> None:
    model = build(SMALL)
    with pytest.raises(AssertionError):
        close(run(model, ZeroHeads({0: [1]})), run(without_columns(model, {0: [2]})), 1e-6)


def test_a_gradient_flows_around_the_zeroed_heads() -> None:
    config = SHAPES["gpt2"]
    model = build(config)
    pruned = without_columns(model, CHOSEN)
    model(IDS, hooks=Hooks([ZeroHeads(CHOSEN)])).square().sum().backward()
    pruned(IDS).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), pruned.parameters(), strict=True):
        if not name.endswith("o_proj.weight"):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)  # float32
    by_head = model.blocks[0].attention.o_proj.weight.grad.unflatten(1, (config.num_heads, -1))
    assert by_head.abs().amax((0, 2)).gt(1e-3).tolist() == [True, False, True, False]


@every_shape
def test_gradient_checkpointing_keeps_interventions(config: ModelConfig) -> None:
    model = build(config).train()
    hooks = Hooks(
        [
            ZeroHeads(CHOSEN, positions=(1, 4)),
            Replace(point="mlp.output", layer=1, value=0.5, positions=(2,)),
            Replace(point="attention.pattern", layer=0, value=0.1, heads=(0,)),
        ]
    )
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(IDS, hooks=hooks).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


# --- replacing ----------------------------------------------------------------------------------


def replacements(config: ModelConfig) -> list[Replace]:
    """One for each point: a number or a vector, with and without heads and positions."""
    vector = tuple(float(value) for value in range(config.width))
    head = tuple(float(value) for value in range(config.head_dim))
    words = tuple(float(value) for value in range(config.vocab_size))
    return [
        Replace(point="residual.before", layer=1, value=vector, positions=(1, 3)),
        Replace(point="attention.pattern", layer=0, value=0.25),
        Replace(point="attention.pattern", layer=1, value=0.25, heads=(0, 2), positions=(1, 3)),
        Replace(point="attention.heads", layer=0, value=2.0, positions=(0, 6)),
        Replace(point="attention.heads", layer=1, value=head, heads=(3,), positions=(1, 3)),
        Replace(point="attention.output", layer=0, value=vector),
        Replace(point="mlp.output", layer=1, value=0.0, positions=(2,)),
        Replace(point="residual.after", layer=1, value=vector, positions=(2, 40)),
        Replace(point="logits", value=words, positions=(1, 3)),
        Replace(point="logits", value=-1.5),
    ]


EVERY_REPLACEMENT = pytest.mark.parametrize("index", range(len(replacements(SMALL))))


@every_shape
@EVERY_REPLACEMENT
def test_replace_puts_its_value_there_and_nowhere_else(config: ModelConfig, index: int) -> None:
    change = replacements(config)[index]
    key = change.point, change.layer
    model = build(config)
    before, after = record(model)[key], record(model, change)[key]
    expected = before.clone()
    positions = range(T) if change.positions == "all" else [p for p in change.positions if p < T]
    heads = range(config.num_heads) if change.heads is None else change.heads
    value = torch.tensor(change.value)
    for position in positions:
        if change.point == "attention.pattern":  # only where the position may look
            seen = (before[:, list(heads), position] > 0).float()
            expected[:, list(heads), position] = value * seen
        elif change.point == "attention.heads":
            expected[:, position, list(heads)] = value
        else:
            expected[:, position] = value
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


@every_shape
@EVERY_REPLACEMENT
def test_replace_is_the_same_in_full_cached_and_ragged_passes(
    config: ModelConfig, index: int
) -> None:
    model, change = build(config), replacements(config)[index]
    expected = run(model, change)
    close(run_cached(model, change), expected)
    close(run_cached(model, change, chunk=3), expected)
    close(run_ragged(model, change), expected)


@every_shape
def test_an_intervention_changes_nothing_before_its_positions(config: ModelConfig) -> None:
    model = build(config)
    for change in replacements(config):
        late = run(model, change.changed(positions=(4,)))
        close(late[:, :4], run(model)[:, :4])
        assert not torch.allclose(late[:, 4], run(model)[:, 4], atol=1e-3)


def test_a_pattern_that_ignores_the_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SMALL)
    change = Replace(point="attention.pattern", layer=0, value=0.25)
    close(run_cached(model, change), run(model, change))
    at = Hooks.at
    monkeypatch.setattr(
        Hooks, "at", lambda self, *where, allowed=None: at(self, *where, allowed=None)
    )
    with pytest.raises(AssertionError):
        close(run_cached(model, change), run(model, change))


def test_what_follows_a_replaced_stream_is_that_of_the_new_value() -> None:
    model = build(SMALL)
    vector = torch.linspace(-1, 1, SMALL.width)
    change = Replace(point="residual.after", layer=1, value=tuple(vector.tolist()))
    expected = norm64(model.final_norm, vector) @ model.embed.weight.detach().double().T
    close(run(model, change), expected.expand(B, T, -1))


def test_interventions_apply_in_order_and_recorders_see_the_result() -> None:
    model, key = build(SMALL), ("attention.heads", 0)
    put, zero = Replace(point="attention.heads", layer=0, value=2.0), ZeroHeads({0: [1]})
    assert not record(model, put, zero)[key][:, :, 1].any()
    assert record(model, zero, put)[key].eq(2.0).all()


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
        (lambda: ZeroHeads({0: [1]}, positions=(3, -1)), "positions.1 is -1"),
        (lambda: Replace(point="logits"), "needs a value for 'value'"),
    ],
)
def test_a_malformed_intervention_is_a_config_error(make, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroHeads({2: [1]}), "layers 0..1, not 2"),
        (lambda: ZeroHeads({-1: [1]}), "layers 0..1, not -1"),
        (lambda: ZeroHeads({0: [1, 4]}), "heads 0..3, not 4"),
        (
            lambda: Replace(point="atention.pattern", layer=0, value=0.0),
            "no hook point 'atention.pattern'. Did you mean 'attention.pattern'?",
        ),
        (lambda: Replace(point="mlp.output", layer=7, value=0.0), "layers 0..1, not 7"),
        (lambda: Replace(point="mlp.output", value=0.0), "layers 0..1, not -1"),
        (
            lambda: Replace(point="logits", layer=1, value=0.0),
            "logits belong to no layer, not to 1",
        ),
        (
            lambda: Replace(point="mlp.output", layer=0, value=0.0, heads=(1,)),
            "mlp.output has no heads",
        ),
        (
            lambda: Replace(point="attention.heads", layer=0, value=0.0, heads=(4,)),
            "heads 0..3, not 4",
        ),
        (
            lambda: Replace(point="attention.heads", layer=0, value=(1.0, 2.0)),
            "attention.heads is 4 wide, the replacement 2",
        ),
        (
            lambda: Replace(point="attention.pattern", layer=0, value=(1.0,) * 16),
            "attention.pattern is replaced by a number",
        ),
    ],
)
def test_what_the_model_does_not_have_is_a_hook_error(make, message: str) -> None:
    model = build(SMALL)
    with pytest.raises(HookError) as error:
        model(IDS, hooks=Hooks([make()]))
    assert message in str(error.value)
