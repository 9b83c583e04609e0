"""Patching: which part of a model carries the difference between two texts.

A part's output in one run is put in the place of its output in another, and the score tells how
much of the difference came with it: 0 nothing, 1 all of it. Causal tracing of Meng et al. 2022 and
Wang et al. 2023, for heads and for positions of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stepwell.errors import PromptError, UsageError
from stepwell.generate.record import Recording, record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Intervention, Patch, ZeroHeads
from stepwell.study.effects import EffectTable
from stepwell.study.heatmap import visible
from stepwell.study.question import METRIC_NAMES, Metric, Question, ask, last_logits

Texts = str | Sequence[str]
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
) -> EffectTable:
    """How much of the difference between two texts each head carries: layers down, heads across.

    into "corrupt": the head's output of the clean run goes into the corrupt run; 1 where the whole
    score comes back. into "clean": the other way round; 1 where all of it is lost. `right` and
    `wrong` are the answers to the clean and to the corrupt text, by default those of the model.
    Several pairs of texts may be given; a pair has equally many tokens.

    Raises PromptError for texts that do not pair or that the model answers alike.
    """
    pair = _Pair(generator, clean, corrupt, metric, right, wrong, into)
    config = generator.model.config
    places = [
        (layer, head) for layer in range(config.num_layers) for head in range(config.num_heads)
    ]
    return pair.table(
        [
            [
                _patch(seen, "attention.heads", layer, range(length), head)
                for seen, length in pair.source
            ]
            for layer, head in places
        ],
        [f"head {head}" for head in range(config.num_heads)],
        title="What each head carries",
    )


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
) -> EffectTable:
    """The same for a point of each layer at each position: layers down, tokens across.

    All texts have equally many tokens. Raises as `patch_heads` does, UsageError for the logits.
    """
    if point == "logits":
        raise UsageError("logits belong to no layer.", fix="name a point of the layers.")
    pair = _Pair(generator, clean, corrupt, metric, right, wrong, into, point)
    [length, *others] = {length for _, length in pair.source}
    if others:
        raise PromptError("Positions can be compared only in texts of equally many tokens.")
    places = [
        (layer, position)
        for layer in range(generator.model.config.num_layers)
        for position in range(length)
    ]
    names = [visible(generator.tokenizer.token(token)) for token in pair.question.texts[0]]
    return pair.table(
        [
            [_patch(seen, point, layer, [position]) for seen, _ in pair.source]
            for layer, position in places
        ],
        names,
        title=f"What {point} carries, by position",
    )


def zero_heads(
    generator: TextGenerator,
    texts: Texts,
    *,
    metric: Metric = "logit_difference",
    right: Texts | None = None,
    wrong: Texts | None = None,
) -> EffectTable:
    """What the score loses where a head is silenced: layers down, heads across."""
    question, config = ask(generator, texts, right, wrong, metric=metric), generator.model.config
    plain_N = question.score(last_logits(generator.model, question.texts))
    cells = [
        [[ZeroHeads({layer: [head]})]] * len(question.texts)
        for layer in range(config.num_layers)
        for head in range(config.num_heads)
    ]
    scores_NP = _scores(generator, question, cells)
    return EffectTable.differences(
        (plain_N[:, None] - scores_NP).view(len(question.texts), config.num_layers, -1),
        [f"head {head}" for head in range(config.num_heads)],
        title="What silencing a head costs",
        value_label=METRIC_NAMES[metric],
    )


class _Pair:
    """Clean and corrupt texts, the run that values come from and the one they go into."""

    def __init__(
        self,
        generator: TextGenerator,
        clean: Texts,
        corrupt: Texts,
        metric: Metric,
        right: Texts | None,
        wrong: Texts | None,
        into: Into,
        point: str = "attention.heads",
    ) -> None:
        self.generator, self.into = generator, into
        if into not in ("corrupt", "clean"):
            raise UsageError(f"into is {into!r}, expected 'corrupt' or 'clean'.")
        cleans = ask(generator, clean, right, metric=metric)
        corrupts = ask(generator, corrupt, wrong, metric=metric)
        _check(cleans, corrupts)
        self.question = Question(cleans.texts, cleans.right, corrupts.right, metric)
        self.clean_N = self._score(cleans.texts)
        self.corrupt_N = self._score(corrupts.texts)
        self.targets, sources = cleans.texts, corrupts.texts
        if into == "corrupt":
            self.targets, sources = sources, self.targets
        spec = Record(points=(point,))
        seen: Recording = record(generator.model, sources, spec)
        self.source = [(seen.row(row), len(text)) for row, text in enumerate(sources)]

    def _score(self, texts: Sequence[Sequence[int]]) -> Tensor:
        return self.question.score(last_logits(self.generator.model, texts)).double()

    def table(
        self, cells: Sequence[Sequence[Intervention]], names: list[str], title: str
    ) -> EffectTable:
        """The effect of each cell's patches, one for each pair; cells come layer by layer."""
        question = Question(
            self.targets, self.question.right, self.question.wrong, self.question.metric
        )
        patched_NP = _scores(
            self.generator, question, [[[each] for each in cell] for cell in cells]
        )
        start_N, end_N = self.corrupt_N, self.clean_N
        if self.into == "clean":
            start_N, end_N = end_N, start_N
        return EffectTable.shares(
            patched_NP.double().view(len(question.texts), -1, len(names)),
            start_N,
            end_N,
            names,
            title=title,
            metric=METRIC_NAMES[question.metric],
        )


def _patch(
    seen: dict[tuple[str, int], Tensor],
    point: str,
    layer: int,
    positions: Sequence[int],
    head: int | None = None,
) -> Patch:
    heads = None if head is None else (head,)
    return Patch.of(seen, point, layer, positions=tuple(positions), heads=heads)


def _scores(
    generator: TextGenerator,
    question: Question,
    cells: Sequence[Sequence[Sequence[Intervention]]],
) -> Tensor:
    """The score of each text under each cell's interventions, [N, cells]."""
    rows = [text for _ in cells for text in question.texts]
    own = [each for cell in cells for each in cell]
    logits = last_logits(generator.model, rows, own).view(len(cells), len(question.texts), -1)
    return torch.stack([question.score(each) for each in logits], 1)


def _check(clean: Question, corrupt: Question) -> None:
    if len(clean.texts) != len(corrupt.texts):
        raise PromptError(
            f"{len(clean.texts)} clean texts do not pair with {len(corrupt.texts)} corrupt ones."
        )
    for number, (one, other) in enumerate(zip(clean.texts, corrupt.texts, strict=True)):
        if len(one) != len(other):
            raise PromptError(
                f"Pair {number}: the clean text has {len(one)} tokens, the corrupt one"
                f" {len(other)}.",
                fix="corrupt a text by replacing tokens, so that positions stay comparable.",
            )
    if clean.right == corrupt.right:
        raise PromptError(
            "The clean and the corrupt texts have the same answers.",
            fix="choose texts that the model answers differently, or give right= and wrong=.",
        )
