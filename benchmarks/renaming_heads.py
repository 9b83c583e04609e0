"""Which heads carry the answer in variable renaming, and is it they that must?

Trains networks of 3 layers with 4 heads (width 64) with three seeds, patches every head from a text
into the same text with other values, names the heads that carry the difference, then silences them,
and gives them back: `python -m benchmarks.renaming_heads`. About 20 minutes on two cores; finished
runs are reused. Writes pictures to docs/images and prints tables; docs/renaming-heads.md tells what
they say.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import stepwell as sw
from benchmarks.renaming_depth import RENAMES, MixedLengths, config
from stepwell.evals.frontier import Interval, bootstrap
from stepwell.generate.record import record
from stepwell.model.hooks import Hooks
from stepwell.report import Chart, HeatmapGrid, Series, write_png
from stepwell.study.effects import EffectTable
from stepwell.study.patch import patch_heads
from stepwell.tasks import Example, VariableRenaming

SEEDS = (0, 1, 2)
LAYERS, HEADS, CHAINS = 3, 4, 4
DEPTHS = (2, 3, 4)
"""Depth 1 is a chain's first name, whose value its place tells."""
NUM_PAIRS = 100
NUM_TEXTS = 400
LEAST_SHARE = 0.1
"""A head is named where it alone carries this share of the difference, by three standard errors."""

Head = tuple[int, int]
IMAGES = Path("docs/images")


def train(seed: int) -> Path:
    """The run folder of one network."""
    asked = config(LAYERS, HEADS, seed).changed(runs=Path("runs/renaming-heads"))
    return MixedLengths(asked).train().directory


def examples(task: VariableRenaming, count: int) -> list[Example]:
    """Texts that no network learnt from."""
    return [task.example_in("test", index) for index in range(count)]


def rotated(text: str) -> str:
    """The same text with other values: each of the chains' first names stands where the next was.

    The digits stay: as they always come in the same order, a network need not read them.
    """
    first = range(2, 4 * CHAINS, 4)
    signs = list(text)
    for place, name in zip(
        first, [text[4 * CHAINS - 2], *text[2 : 4 * CHAINS - 2 : 4]], strict=True
    ):
        signs[place] = name
    return "".join(signs)


def rotated_value(value: str) -> str:
    """The value in the rotated text of a name that has this one in the text."""
    return str(int(value) % CHAINS + 1)


# Which heads carry the difference


@dataclass(frozen=True)
class Pairs:
    """Texts that end where a value of one depth is asked for, and the same with other values."""

    clean: list[str]
    corrupt: list[str]
    right: list[str]
    wrong: list[str]


def pairs_of(texts: Sequence[Example], depth: int) -> Pairs:
    """The last place of that depth in each text that has one, up to NUM_PAIRS of them."""
    found = Pairs([], [], [], [])
    for example in texts:
        ends = [target for target in example.targets if target.depth == depth]
        if not ends or len(found.clean) == NUM_PAIRS:
            continue
        end = ends[-1]
        found.clean.append(example.text[: end.start + 1])
        found.corrupt.append(rotated(example.text)[: end.start + 1])
        found.right.append(end.text)
        found.wrong.append(rotated_value(end.text))
    return found


def effects_by_depth(gen: sw.TextGenerator, texts: Sequence[Example]) -> dict[int, EffectTable]:
    """What each head carries of the answers of each depth."""
    tables = {}
    for depth in DEPTHS:
        pairs = pairs_of(texts, depth)
        tables[depth] = patch_heads(
            gen, pairs.clean, pairs.corrupt, right=pairs.right, wrong=pairs.wrong
        )
    return tables


def named(tables: Mapping[int, EffectTable]) -> list[Head]:
    """The heads that carry the answers of at least one depth."""
    found = set()
    for table in tables.values():
        sure = table.effects - 3 * table.standard_errors > LEAST_SHARE
        found |= {(int(layer), int(head)) for layer, head in zip(*np.nonzero(sure), strict=True)}
    return sorted(found)


# What becomes of the accuracy


def by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    """The heads of each layer."""
    return {layer: [head for at, head in heads if at == layer] for layer in {at for at, _ in heads}}


def patches(gen: sw.TextGenerator, ids: Sequence[int], heads: Sequence[Head]) -> list[sw.Patch]:
    """The outputs of these heads on a text, to be put into another run of as many tokens."""
    spec = sw.Record(points=("attention.heads",))
    seen = record(gen.model, [ids], spec).row(0)
    everywhere = range(len(ids))
    return [
        sw.Patch.of(seen, "attention.heads", layer, positions=everywhere, heads=own)
        for layer, own in by_layer(heads).items()
    ]


def conditions(gen: sw.TextGenerator, example: Example, heads: Sequence[Head]) -> dict[str, Any]:
    """(text that is read, interventions) by what is done to the network."""
    others = [head for head in every_head() if head not in heads]
    clean, corrupt = gen.encode([example.text, rotated(example.text)])
    return {
        "intact": (clean, []),
        "named heads zeroed": (clean, [sw.ZeroHeads(by_layer(heads))]),
        "the other heads zeroed": (clean, [sw.ZeroHeads(by_layer(others))]),
        "other values read": (corrupt, []),
        "named heads patched": (corrupt, patches(gen, clean, heads)),
        "the other heads patched": (corrupt, patches(gen, clean, others)),
    }


def every_head() -> list[Head]:
    """All heads of a network."""
    return [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def rights(
    gen: sw.TextGenerator, texts: Sequence[Example], heads: Sequence[Head]
) -> dict[str, Tensor]:
    """[texts, depths, (right, asked)] by condition: answers that are those of the intact text."""
    counted: dict[str, Tensor] = {}
    for number, example in enumerate(texts):
        for name, (ids, interventions) in conditions(gen, example, heads).items():
            counts = counted.setdefault(name, torch.zeros(len(texts), len(DEPTHS), 2))
            with torch.inference_mode():
                logits_TV = gen.model(torch.tensor([ids]), hooks=Hooks(interventions))[0]
            said = logits_TV.argmax(-1).tolist()
            for target in example.targets:
                if target.depth in DEPTHS:
                    [value] = gen.tokenizer.encode(target.text)
                    counts[number, DEPTHS.index(target.depth)] += torch.tensor(
                        [said[target.start] == value, 1]
                    )
    return counted


def accuracy(counts_ND2: Tensor) -> list[Interval]:
    """Accuracy at each depth with its 95% interval over texts."""
    right, asked = counts_ND2.double().numpy().transpose(2, 0, 1)

    def shares(weights_N: NDArray[np.float64]) -> list[float]:
        return list((weights_N @ right) / (weights_N @ asked))

    return list(bootstrap(shares, np.ones(len(right)), resamples=1000))


# What they look at


def looks(gen: sw.TextGenerator, texts: Sequence[Example]) -> dict[str, NDArray[np.float64]]:
    """Mean attention [L, H] in statements that pass a value on, such as the last of a>b;..b>c;

    new to old: from the new name, c, to the old one before it. old to bound: from the old name, b,
    to where it was bound. new to bound: from the new name to there at once.
    """
    sums = {
        kind: np.zeros((LAYERS, HEADS)) for kind in ("new to old", "old to bound", "new to bound")
    }
    count = 0
    for example in texts[:100]:
        [ids] = gen.encode([example.text])
        seen = record(gen.model, [ids], sw.Record())
        pattern = torch.stack([seen["attention.pattern", layer][0] for layer in range(LAYERS)])
        for target in example.targets:
            if target.depth > 1:
                new, old = target.start, target.start - 2
                bound = example.text.rindex(example.text[old], 0, old)
                sums["new to old"] += pattern[:, :, new, old].double().numpy()
                sums["old to bound"] += pattern[:, :, old, bound].double().numpy()
                sums["new to bound"] += pattern[:, :, new, bound].double().numpy()
                count += 1
    return {kind: values / count for kind, values in sums.items()}


# The report


def study(seed: int) -> dict[str, Any]:
    """All findings about one network."""
    gen = sw.TextGenerator.load(train(seed), device="cpu")
    texts = examples(VariableRenaming(chains=CHAINS, renames=RENAMES, seed=seed), NUM_TEXTS)
    tables = effects_by_depth(gen, texts)
    heads = named(tables)
    counts = rights(gen, texts, heads)
    return {
        "seed": seed,
        "heads": heads,
        "effects": {depth: table.effects.tolist() for depth, table in tables.items()},
        "errors": {depth: table.standard_errors.tolist() for depth, table in tables.items()},
        "accuracy": {
            name: [[each.estimate, each.low, each.high] for each in accuracy(each_ND2)]
            for name, each_ND2 in counts.items()
        },
        "looks": {kind: values.tolist() for kind, values in looks(gen, texts).items()},
    }


def draw(found: Sequence[Mapping[str, Any]]) -> None:
    """The pictures of the page: effects and accuracies of the network that learnt most."""
    best = max(found, key=lambda each: each["accuracy"]["intact"][-1][0])
    write_png(
        HeatmapGrid(
            title="What each head carries of the answer",
            note="Share of the difference that comes with the head, by depth of the answer.",
            values=np.array([[best["effects"][depth] for depth in DEPTHS]]),
            row_labels=[""],
            column_labels=[f"depth {depth}" for depth in DEPTHS],
            x_ticks=[f"head {head}" for head in range(HEADS)],
            y_ticks=[f"layer {layer}" for layer in range(LAYERS)],
            x_label="head",
            y_label="layer",
            value_label="share",
            center=0.0,
        ),
        IMAGES / "renaming-heads-effects.png",
    )
    series = []
    for name, values in best["accuracy"].items():
        middle, low, high = np.array(values).T
        series.append(Series(name, range(len(DEPTHS)), middle, low, high, style="bars"))
    chart = Chart(
        "Accuracy without them, and with them given back",
        "",
        "answers as in the intact text",
        series,
        note="Intervals: 95%, bootstrap over 400 texts. A quarter is chance.",
        y_percent=True,
        y_range=(0.0, 1.0),
        categories=[f"depth {depth}" for depth in DEPTHS],
    )
    write_png(chart, IMAGES / "renaming-heads-accuracy.png")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The findings as text."""
    lines = []
    for each in found:
        heads = ", ".join(f"{layer}.{head}" for layer, head in each["heads"])
        lines.append(f"seed {each['seed']}: named heads (layer.head) {heads}")
        for name, values in each["accuracy"].items():
            cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in values]
            lines.append(f"  {name:24}" + "".join(f"{cell:>20}" for cell in cells))
        for kind, values in each["looks"].items():
            best = [f"{layer}.{head} {values[layer][head]:.2f}" for layer, head in each["heads"]]
            lines.append(f"  attention from {kind:13} {', '.join(best)}")
    return "\n".join(lines)


def main() -> None:
    """Train, study, draw and print."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(study, SEEDS))
    draw(found)
    Path("benchmarks/results/renaming-heads.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    main()
