"""Hooks inside the kernels: for every instruction set and family, what torch reads and changes.

Whole requests are compared in tests/laws; here it is steps of one sequence, cut differently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from stepwell.generate.row_hooks import RowHooks, touches
from stepwell.generate.tape import Record, Tape
from stepwell.model.hooks import POINTS, Hooks
from stepwell.model.interventions import Intervention, Patch, Replace, Scale, Steer, ZeroHeads
from stepwell.model.quantize import quantize_weights
from stepwell.model.transformer import Transformer
from stepwell.native.decoder import Run
from stepwell.native.hooks import HookTable, Touch
from stepwell.native.library import Library
from tests.native.test_decoder import (
    LENGTH,
    SHAPES,
    STEPS,
    TOLERANCE,
    cache_for,
    decoder_of,
    ids_of,
    kernels,
    model_of,
)
from tests.support.interventions import some_intervention

__all__ = ["kernels"]

NUM_PROMPT = 100
TABLE = (4, 0, 2)


def in_kernels(
    model: Transformer,
    library: Library,
    interventions: Sequence[Intervention],
    sizes: Sequence[int] = STEPS,
) -> tuple[Tensor, Tape]:
    """Logits [LENGTH, V] of one sequence under interventions, and all that was recorded."""
    decoder, cache = decoder_of(model, library), cache_for(model, 5, torch.nan)
    tape = Tape(Record(points=POINTS), model.config, NUM_PROMPT)
    row = RowHooks([edit for each in interventions for edit in each.edits], NUM_PROMPT, tape)
    parts, start, ids = [], 0, ids_of(0)
    for size in sizes:
        run = Run(ids[start : start + size], start, TABLE, wanted=size)
        parts.append(decoder.step([run], cache, list(touches(row, run.ids, start, 0))).logits)
        start += size
    return torch.cat(parts), tape


def in_torch(model: Transformer, interventions: Sequence[Intervention]) -> Tensor:
    """The same logits by one forward."""
    hooks = Hooks(interventions, prompt_lengths=[NUM_PROMPT])
    with torch.inference_mode():
        return model(torch.tensor([ids_of(0)]), hooks=hooks)[0].float()


def drawn(model: Transformer, seed: int) -> list[Intervention]:
    chance = random.Random(seed)
    config = model.config
    found = [some_intervention(chance, config) for _ in range(8)]
    return [each for each in found if fits(each, model)][:3]


def fits(intervention: Intervention, model: Transformer) -> bool:
    """Whether a model of this shape has all that is named: heads go up to 3, layers to 1."""
    heads = [head for edit in intervention.edits for head in edit.heads or ()]
    return all(head < model.config.num_heads for head in heads)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("shape", [name for name in SHAPES if "narrower" not in name])
def test_kernels_change_what_torch_changes(shape: str, kernels: Library) -> None:
    model = model_of(shape)
    for seed in range(3):
        if model.config.num_heads < 4:
            interventions: list[Intervention] = [
                ZeroHeads({0: [1]}),
                Scale(point="attention.pattern", layer=1, heads=(0,), factor=0.5),
                Replace(point="mlp.output", layer=0, value=0.3, positions="generated"),
            ]
        else:
            interventions = drawn(model, seed)
        found, _ = in_kernels(model, kernels, interventions)
        assert apart(found, in_torch(model, interventions)) < TOLERANCE


def test_however_a_sequence_is_cut_it_is_changed_and_read_to_the_bit(kernels: Library) -> None:
    model = model_of("llama-grouped")
    vector = torch.linspace(-1, 1, model.config.width)
    interventions = [
        Steer(layer=0, vector=vector, positions="generated"),
        Replace(point="attention.pattern", layer=1, value=0.01, heads=(2, 5)),
    ]
    logits, tape = in_kernels(model, kernels, interventions)
    values, _ = tape.values(LENGTH)
    for sizes in ([LENGTH], [1] * LENGTH, [64, 64, 22]):
        again, other = in_kernels(model, kernels, interventions, sizes)
        assert torch.equal(again, logits)
        assert all(
            torch.equal(value, other.values(LENGTH)[0][key]) for key, value in values.items()
        )


def test_idle_hooks_and_readers_move_no_bit(kernels: Library) -> None:
    model = model_of("llama-grouped")
    decoder, cache = decoder_of(model, kernels), cache_for(model, 5, torch.nan)
    plain = decoder.step([Run(ids_of(0), 0, TABLE, LENGTH)], cache).logits
    read, _ = in_kernels(model, kernels, [], [LENGTH])
    assert torch.equal(read, plain)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_zeroing_a_head_is_ablating_its_weights(form: str, kernels: Library) -> None:
    """In 8 bits the columns are zeroed first, so that the scales of the rest may differ."""
    heads = {0: [1, 4], 1: [0]}
    model, ablated = model_of("llama-grouped", form), ablating(heads, form)
    found, _ = in_kernels(model, kernels, [ZeroHeads(heads)])
    expected, _ = in_kernels(ablated, kernels, [])
    without, _ = in_kernels(model, kernels, [])
    tolerance = {"float32": 1e-6, "bfloat16": 1e-6, "int8": 0.1}[form]
    assert apart(found, expected) < tolerance
    assert apart(without, expected) > 2 * tolerance + 1e-2


def ablating(heads: dict[int, list[int]], form: str) -> Transformer:
    """A copy of the model whose output projections ignore some heads."""
    plain = model_of("llama-grouped", "float32" if form == "int8" else form)
    copy = Transformer(plain.config).to(plain.dtype)
    copy.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for layer, chosen in heads.items():
            weight = copy.blocks[layer].attention.o_proj.weight
            weight.view(len(weight), plain.config.num_heads, -1)[:, chosen] = 0
    copy.requires_grad_(False)
    return quantize_weights(copy) if form == "int8" else copy


def test_rows_beyond_a_call_of_the_kernels_are_reached(kernels: Library) -> None:
    """A step of more than 256 rows goes through the layers in parts."""
    model = model_of("llama-grouped")
    decoder, cache = decoder_of(model, kernels), cache_for(model, 9, torch.nan)
    runs = [Run(ids_of(0), 0, TABLE, 1), Run(ids_of(1), 0, (1, 3, 5), 1)]
    zero = Touch("mlp.output", 0, "set", LENGTH, LENGTH)
    found = decoder.step(runs, cache, [zero]).logits
    first, second = (decoder.step([run], cache).logits for run in runs)
    changed = decoder.step([runs[1]], cache, [zero._replace(first_row=0)]).logits
    assert torch.equal(found, torch.cat((first, changed)))
    assert not torch.equal(second, changed)


def test_the_table_is_sorted_by_layer_and_point_and_keeps_the_order() -> None:
    given = [
        Touch("logits", -1, "scale", 0, 1, 2.0),
        Touch("mlp.output", 1, "scale", 0, 1, 3.0),
        Touch("attention.heads", 0, "scale", 0, 1, 4.0, heads=(2, 0)),
        Touch("mlp.output", 1, "scale", 1, 2, 5.0),
    ]
    table = HookTable(given, num_layers=2, num_heads=4)
    assert table.table["number"].tolist() == [4.0, 3.0, 5.0, 2.0]
    bounds: Iterator[tuple[int, int]] = zip(table.starts[:-1], table.starts[1:], strict=True)
    assert [number for number, (a, b) in enumerate(bounds) if a != b] == [2, 6 + 4, 12]
    assert table.starts[-1] == 4


def test_a_position_that_is_numbered_twice_gets_the_last_value_as_in_torch(
    kernels: Library,
) -> None:
    model = model_of("llama-grouped")
    values = torch.randn(3, model.config.width, generator=torch.Generator().manual_seed(0))
    twice = Patch(point="mlp.output", layer=0, values=values, positions=(3, NUM_PROMPT - 1, -1))
    found, _ = in_kernels(model, kernels, [twice])
    assert apart(found, in_torch(model, [twice])) < TOLERANCE
