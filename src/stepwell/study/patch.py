"""Patching: which part of a model carries the difference between two texts.

A part's output in one run is put in the place of its output in another, and the score tells how
much of the difference came with it: 0 nothing, 1 all of it. Causal tracing of Meng et al. 2022 and
Wang et al. 2023, for heads and for positions of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from stepwell.errors import PromptError, UsageError, suggest
from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Patch, ZeroHeads
from stepwell.study.effects import EffectTable, head_names
from stepwell.study.heatmap import visible
from stepwell.study.metric import METRIC_NAMES, Metric
from stepwell.study.pairs import ask_pairs
from stepwell.study.question import Cell, Progress, Question, Texts, ask

Into = Literal["corrupt", "clean"]


def patch_heads(
    generator: TextGenerator,
    clean: Texts,
    corrupt: Texts,
    *,
    metric: Metric = "logit_difference",
    right: Texts | None = None,
    wrong: Texts | None = None,
    into: Into = "corrupt",
    progress: Progress | None = None,
) -> EffectTable:
    """How much of the difference between two texts each head carries: layers down, heads across.

    into "corrupt": the head's output of the clean run goes into the corrupt run; 1 where the whole
    score comes back. into "clean": the other way round; 1 where all of it is lost. `right` and
    `wrong` are the answers to the clean and to the corrupt text, by default those of the model.
    Several pairs of texts may be given; a pair has equally many tokens.

    Raises PromptError for texts that do not pair or that the model answers alike.
    """
    exchange = _Exchange.of(generator, clean, corrupt, metric, right, wrong, into)
    seen, config = exchange.seen("attention.heads"), generator.model.config
    cells = [
        [
            [_patch(values, "attention.heads", layer, range(len(text)), head)]
            for values, text in zip(seen, exchange.target.texts, strict=True)
        ]
        for layer in range(config.num_layers)
        for head in range(config.num_heads)
    ]
    return exchange.table(cells, head_names(config), "What each head carries", progress)


def patch_positions(
    generator: TextGenerator,
    clean: Texts,
    corrupt: Texts,
    *,
    point: str = "residual.before",
    metric: Metric = "logit_difference",
    right: Texts | None = None,
    wrong: Texts | None = None,
    into: Into = "corrupt",
    progress: Progress | None = None,
) -> EffectTable:
    """The same for a point of each layer at each position: layers down, tokens across.

    All texts have equally many tokens. Raises as `patch_heads` does, UsageError for the logits,
    HookError for a point that there is not.
    """
    if point == "logits":
        raise UsageError("logits belong to no layer.", fix="name a point of the layers.")
    exchange = _Exchange.of(generator, clean, corrupt, metric, right, wrong, into)
    [length, *others] = {len(text) for text in exchange.target.texts}
    if others:
        raise PromptError(
            "Positions can be compared only in texts of equally many tokens.",
            fix="take pairs of one length, or patch heads.",
        )
    seen = exchange.seen(point)
    cells = [
        [[_patch(values, point, layer, [position])] for values in seen]
        for layer in range(generator.model.config.num_layers)
        for position in range(length)
    ]
    names = [
        f"{position} {visible(generator.tokenizer.token(token))}"
        for position, token in enumerate(exchange.source.texts[0])
    ]
    return exchange.table(cells, names, f"What {point} carries, by position", progress)


def zero_heads(
    generator: TextGenerator,
    texts: Texts,
    *,
    metric: Metric = "logit_difference",
    right: Texts | None = None,
    wrong: Texts | None = None,
    progress: Progress | None = None,
) -> EffectTable:
    """What the score loses where a head is silenced: layers down, heads across."""
    question, config = ask(generator, texts, right, wrong, metric=metric), generator.model.config
    cells = [
        [[ZeroHeads({layer: [head]})]] * len(question.texts)
        for layer in range(config.num_layers)
        for head in range(config.num_heads)
    ]
    silenced_PN = question.scores(generator.model, cells, progress=progress)
    lost_PN = question.scores(generator.model) - silenced_PN
    return EffectTable.differences(
        lost_PN.T.reshape(len(question.texts), config.num_layers, -1),
        head_names(config),
        title="What silencing a head costs",
        value_label=METRIC_NAMES[metric],
    )


@dataclass(frozen=True)
class _Exchange:
    """The question of the run that values come from, and of the one that they go into."""

    generator: TextGenerator
    source: Question
    target: Question

    @classmethod
    def of(
        cls,
        generator: TextGenerator,
        clean: Texts,
        corrupt: Texts,
        metric: Metric,
        right: Texts | None,
        wrong: Texts | None,
        into: Into,
    ) -> _Exchange:
        """Raises UsageError where `into` names no run."""
        if into not in get_args(Into):
            raise UsageError(f"into is {into!r}. {suggest(into, get_args(Into))}")
        pairs = ask_pairs(generator, clean, corrupt, right, wrong, metric)
        if into == "corrupt":
            return cls(generator, pairs.clean, pairs.corrupt)
        return cls(generator, pairs.corrupt, pairs.clean)

    def seen(self, point: str) -> list[Mapping[tuple[str, int], Tensor]]:
        """What passed a point in the run of each text that values come from."""
        seen = record(self.generator.model, self.source.texts, Record(points=(point,)))
        return [seen.row(row) for row in range(len(self.source.texts))]

    def table(
        self, cells: Sequence[Cell], names: Sequence[str], title: str, progress: Progress | None
    ) -> EffectTable:
        """The effect of each cell's patches, one for each pair; cells come layer by layer."""
        model = self.generator.model
        [start_N], [end_N] = self.target.scores(model), self.source.scores(model)
        patched_PN = self.target.scores(model, cells, progress=progress)
        return EffectTable.shares(
            patched_PN.T.reshape(len(start_N), -1, len(names)),
            start_N,
            end_N,
            names,
            title=title,
            metric=METRIC_NAMES[self.target.metric],
        )


def _patch(
    seen: Mapping[tuple[str, int], Tensor],
    point: str,
    layer: int,
    positions: Sequence[int],
    head: int | None = None,
) -> Patch:
    """What passed some positions of a run, for one head where it is given, to be put elsewhere."""
    heads = None if head is None else (head,)
    return Patch.of(seen, point, layer, positions=positions, heads=heads)
