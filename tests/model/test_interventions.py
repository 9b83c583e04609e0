"""An intervention changes what it names and nothing else, in every way of running the model.

Tolerances are for float32: 1e-6 where the arithmetic is the same, 1e-5 where a cache or another
order of sums comes in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.errors import HookError
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import HEAD_AXIS, POINTS, Call, Edit, Hooks
from stepwell.model.interventions import Intervention, Patch, Replace, Scale, ZeroHeads
from stepwell.model.transformer import Transformer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
B, T = IDS.shape
CHOSEN = {0: (1, 3), 1: (0,)}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@torch.no_grad()
def run(model: Transformer, *interventions: Intervention | Call) -> Tensor:
    return model(IDS, hooks=Hooks(interventions))


@torch.no_grad()
def run_cached(model: Transformer, *interventions: Intervention, chunk: int = 1) -> Tensor:
    """The same logits, `chunk` positions at a time."""
    cache, hooks, parts = model.new_cache(B), Hooks(interventions), []
    rows = [cache.allocate() for _ in range(B)]
    for ids in IDS.split(chunk, dim=1):
        parts.append(model(ids, view=cache.append(rows, [ids.shape[1]] * B), hooks=hooks))
    return torch.cat(parts, 1)


@torch.no_grad()
def run_ragged(model: Transformer, *interventions: Intervention) -> Tensor:
    """The same logits, with the rows out of step: 5 and 2 positions, then 2 and 5."""
    cache, hooks = model.new_cache(B), Hooks(interventions)
    rows = [cache.allocate() for _ in range(B)]
    first = torch.stack((IDS[0, :5], F.pad(IDS[1, :2], (0, 3))))
    second = torch.stack((F.pad(IDS[0, 5:], (0, 3)), IDS[1, 2:]))
    a = model(first, view=cache.append(rows, [5, 2]), hooks=hooks)
    b = model(second, view=cache.append(rows, [2, 5]), hooks=hooks)
    return torch.stack((torch.cat((a[0], b[0, :2])), torch.cat((a[1, :2], b[1]))))


# --- zeroing heads ------------------------------------------------------------------------------


def without_columns(model: Transformer, heads: Mapping[int, Sequence[int]]) -> Transformer:
    """A copy whose output projections ignore some heads."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for layer, chosen in heads.items():
            weight = pruned.blocks[layer].attention.o_proj.weight
            by_head = weight.view(weight.shape[0], pruned.config.num_heads, -1)
            by_head[:, list(chosen)] = 0
    return pruned


def test_zeroing_a_head_is_zeroing_its_columns(hooked: Transformer) -> None:
    pruned, zero = without_columns(hooked, CHOSEN), ZeroHeads(CHOSEN)
    close(run(hooked, zero), run(pruned), 1e-6)
    for chunk in (1, 3):
        close(run_cached(hooked, zero, chunk=chunk), run_cached(pruned, chunk=chunk), 1e-6)
    close(run_ragged(hooked, zero), run_ragged(pruned), 1e-6)
    assert (run(pruned) - run(hooked)).abs().max() > 1e-2


def test_zeroing_another_head_is_noticed(llama: Transformer) -> None:
    with pytest.raises(AssertionError):
        close(run(llama, ZeroHeads({0: [1]})), run(without_columns(llama, {0: [2]})), 1e-6)


def silenced_at(
    model: Transformer, heads: Mapping[int, Sequence[int]], positions: Sequence[int]
) -> Transformer:
    """A copy that drops heads, at some positions of a full pass, from what is projected."""

    def silence(chosen: Sequence[int]) -> Callable[..., tuple[Tensor]]:
        def hook(_: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            by_head = inputs[0].clone().unflatten(2, (model.config.num_heads, -1))
            for head in chosen:
                by_head[:, positions, head] = 0
            return (by_head.flatten(2),)

        return hook

    twin = copy.deepcopy(model)
    for layer, chosen in heads.items():
        twin.blocks[layer].attention.o_proj.register_forward_pre_hook(silence(chosen))
    return twin


@pytest.mark.parametrize("positions", [(0,), (2, 5), (6,), (40,), ()])
def test_a_head_is_zeroed_at_the_chosen_positions_only(
    hooked: Transformer, positions: tuple[int, ...]
) -> None:
    zero, here = ZeroHeads(CHOSEN, positions=positions), [at for at in positions if at < T]
    expected = run(silenced_at(hooked, CHOSEN, here))
    close(run(hooked, zero), expected, 1e-6)
    close(run_cached(hooked, zero), expected)
    close(run_cached(hooked, zero, chunk=3), expected)
    close(run_ragged(hooked, zero), expected)
    untouched = slice(0, here[0] if here else T)
    assert torch.equal(run(hooked, zero)[:, untouched], run(hooked)[:, untouched])


def test_a_gradient_flows_around_the_zeroed_heads(hooked: Transformer) -> None:
    pruned = without_columns(hooked, CHOSEN)
    hooked(IDS, hooks=Hooks([ZeroHeads(CHOSEN)])).square().mean().backward()
    pruned(IDS).square().mean().backward()
    for (name, ours), theirs in zip(hooked.named_parameters(), pruned.parameters(), strict=True):
        if not name.endswith("o_proj.weight"):
            close(ours.grad, theirs.grad)
    gradient = hooked.blocks[0].attention.o_proj.weight.grad
    by_head = gradient.unflatten(1, (hooked.config.num_heads, -1)).abs().amax((0, 2))
    assert (by_head > 0).tolist() == [True, False, True, False]


def test_gradient_checkpointing_keeps_interventions(hooked: Transformer) -> None:
    hooks = Hooks(
        [
            ZeroHeads(CHOSEN, positions=(1, 4)),
            Replace(point="mlp.output", layer=1, value=0.5, positions=(2,)),
            Replace(point="attention.pattern", layer=0, value=0.1, heads=(0,)),
        ]
    )
    gradients = []
    for hooked.gradient_checkpointing in (False, True):
        hooked.zero_grad()
        hooked.train()(IDS, hooks=hooks).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in hooked.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


# --- replacing ----------------------------------------------------------------------------------


def number_or_vector(change: Replace) -> Tensor:
    value = change.value
    return torch.tensor(value) if isinstance(value, float) else value.tensor


def count(width: int) -> tuple[float, ...]:
    return tuple(float(value) for value in range(width))


REPLACEMENTS: Mapping[str, Callable[[ModelConfig], Replace]] = {
    "stream before": lambda config: Replace(
        point="residual.before", layer=1, value=count(config.width), positions=(1, 3)
    ),
    "pattern": lambda _: Replace(point="attention.pattern", layer=0, value=0.25),
    "some patterns": lambda _: Replace(
        point="attention.pattern", layer=1, value=0.25, heads=(0, 2), positions=(1, 3)
    ),
    "heads": lambda _: Replace(point="attention.heads", layer=0, value=2.0, positions=(0, 6)),
    "some heads": lambda config: Replace(
        point="attention.heads", layer=1, value=count(config.head_dim), heads=(3,), positions=(1, 3)
    ),
    "attention": lambda config: Replace(
        point="attention.output", layer=0, value=count(config.width)
    ),
    "mlp": lambda _: Replace(point="mlp.output", layer=1, value=0.0, positions=(2,)),
    "stream after": lambda config: Replace(
        point="residual.after", layer=1, value=count(config.width), positions=(2, 40)
    ),
    "logits": lambda _: Replace(point="logits", value=-1.5),
    "some logits": lambda config: Replace(
        point="logits", value=count(config.vocab_size), positions=(1, 3)
    ),
}
every_replacement = pytest.mark.parametrize("name", REPLACEMENTS)


@every_replacement
def test_replace_puts_its_value_there_and_nowhere_else(
    hooked: Transformer, name: str, record: Callable[..., Any]
) -> None:
    change = REPLACEMENTS[name](hooked.config)
    key = change.point, change.layer
    before, after = record(hooked, IDS)[key], record(hooked, IDS, change)[key]
    expected, value = before.clone(), number_or_vector(change)
    heads = list(range(hooked.config.num_heads) if change.heads is None else change.heads)
    for position in range(T) if change.positions == "all" else change.positions:
        if position >= T:
            continue
        if change.point == "attention.pattern":  # only where the position may look
            seen = before[:, heads, position] > 0
            expected[:, heads, position] = value * seen
        elif change.point == "attention.heads":
            expected[:, position, heads] = value
        else:
            expected[:, position] = value
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


@every_replacement
def test_replace_is_the_same_in_full_cached_and_ragged_passes(
    hooked: Transformer, name: str
) -> None:
    change = REPLACEMENTS[name](hooked.config)
    expected = run(hooked, change)
    close(run_cached(hooked, change), expected)
    close(run_cached(hooked, change, chunk=3), expected)
    close(run_ragged(hooked, change), expected)


@every_replacement
def test_replace_changes_nothing_before_its_positions(hooked: Transformer, name: str) -> None:
    change = REPLACEMENTS[name](hooked.config).changed(positions=(4,))
    late, plain = run(hooked, change), run(hooked)
    close(late[:, :4], plain[:, :4])
    assert not torch.allclose(late[:, 4], plain[:, 4], atol=1e-3)


def test_a_pattern_that_ignores_the_mask_is_noticed(
    llama: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Replace(point="attention.pattern", layer=0, value=0.25)
    close(run_cached(llama, change), run(llama, change))
    at = Hooks.at

    def unmasked(self: Hooks, *where: Any, allowed: object = None, heads: object = None) -> Tensor:
        return at(self, *where)

    monkeypatch.setattr(Hooks, "at", unmasked)
    with pytest.raises(AssertionError):
        close(run_cached(llama, change), run(llama, change))


def test_what_follows_a_replaced_stream_is_that_of_the_new_value(llama: Transformer) -> None:
    vector = torch.linspace(-1, 1, llama.config.width)
    change = Replace(point="residual.after", layer=1, value=tuple(vector.tolist()))
    with torch.no_grad():
        expected = llama.final_norm(vector) @ llama.embed.weight.T
    close(run(llama, change), expected.expand(B, T, -1))


def test_interventions_apply_in_order_and_recorders_see_the_result(
    llama: Transformer, record: Callable[..., Any]
) -> None:
    put, zero = Replace(point="attention.heads", layer=0, value=2.0), ZeroHeads({0: [1]})
    assert not record(llama, IDS, put, zero)["attention.heads", 0][:, :, 1].any()
    assert record(llama, IDS, zero, put)["attention.heads", 0].eq(2.0).all()


# --- patching -----------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("heads", [None, (2, 0)])
@pytest.mark.parametrize("positions", [range(T), (5, -1)])
def test_a_patch_puts_there_what_another_run_had(
    hooked: Transformer,
    point: str,
    heads: tuple[int, ...] | None,
    positions: Sequence[int],
    record: Callable[..., Any],
) -> None:
    layer = -1 if point == "logits" else 1
    if heads and point not in HEAD_AXIS:
        return
    source = record(hooked, IDS[1:])
    seen = {key: source[key][0] for key in source.seen}
    patch = Patch.of(seen, point, layer, positions=positions, heads=heads)
    before = record(hooked, IDS[:1])[point, layer][0]
    after, other = record(hooked, IDS[:1], patch)[point, layer][0], seen[point, layer]
    expected = before.clone()
    for position in (position % T for position in positions):
        for head in range(hooked.config.num_heads) if heads is None else heads:
            if point == "attention.pattern":
                expected[head, position] = other[head, position]
            elif point == "attention.heads":
                expected[position, head] = other[position, head]
            else:
                expected[position] = other[position]
    close(after, expected, 1e-6)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Patch(point="mlp.output", layer=0, values=[[0.0] * 16], positions="all"),
            "of its own",
        ),
        (
            lambda: Patch(point="mlp.output", layer=0, values=[[0.0] * 16], positions=(1, 2)),
            r"is \[1, 16\], expected \[2, width\]",
        ),
        (
            lambda: Patch(point="attention.pattern", layer=0, values=[[[1.0]]], positions=(3,)),
            "looks at 4 keys, but the pattern has 1",
        ),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(make: Callable[[], Patch], said: str) -> None:
    with pytest.raises(HookError, match=said):
        Hooks([make()])


def test_a_patch_from_beyond_a_recording_is_refused() -> None:
    with pytest.raises(HookError, match=r"positions 0\.\.2, not 3"):
        Patch.of({("mlp.output", 0): torch.zeros(3, 4)}, "mlp.output", 0, positions=[3])


# --- functions of one's own ---------------------------------------------------------------------


def test_a_function_changes_a_forward_as_the_declared_value_does(hooked: Transformer) -> None:
    half = Scale(point="mlp.output", layer=1, factor=0.5)
    assert torch.equal(run(hooked, Call("mlp.output", 1, lambda x: 0.5 * x)), run(hooked, half))


def test_a_function_that_gives_another_shape_is_refused(llama: Transformer) -> None:
    with pytest.raises(HookError, match=r"mlp\.output of layer 1 is \[2, 7, 16\]"):
        run(llama, Call("mlp.output", 1, lambda x: x[:1]))
    with pytest.raises(HookError, match=r"Did you mean 'mlp\.output'"):
        Call("mlp.outputs", 1, lambda x: x)


@pytest.mark.parametrize(
    "values",
    [
        None,
        torch.zeros(3),
        torch.zeros(1, 1, 4, dtype=torch.float64),
        torch.zeros(2, 4, 1).transpose(0, 1),
    ],
)
def test_an_edit_that_the_kernels_could_not_read_is_refused(values: Tensor | None) -> None:
    with pytest.raises(HookError, match="values"):
        Edit("mlp.output", 0, "add", values=values)


def test_a_position_that_is_numbered_twice_gets_the_last_value(llama: Transformer) -> None:
    values = torch.randn(3, llama.config.width, generator=torch.Generator().manual_seed(0))
    twice = Patch(point="mlp.output", layer=0, values=values, positions=(3, T - 1, -1))
    once = Patch(point="mlp.output", layer=0, values=values[[0, 2]], positions=(3, -1))
    assert torch.equal(run(llama, twice), run(llama, once))
