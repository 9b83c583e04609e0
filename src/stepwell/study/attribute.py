"""Attribution by gradients: what patching or silencing a head would do, to first order.

One forward and one backward pass for all heads, where patching takes a forward for each: the effect
of a small step along a direction is its product with the gradient (Nanda 2023, attribution patching;
Michel et al. 2019, gates of heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.hooks import Edit, Heads, Hooks
from stepwell.model.places import Places
from stepwell.study.effects import EffectTable
from stepwell.study.question import METRIC_NAMES, Metric, Question, ask


@dataclass(frozen=True, eq=False)
class _Dial(Edit):
    """Adds to each head's output its dial [B, H] times a direction: a given one, or the output."""

    dial: Tensor | None = None
    direction: Tensor | None = None

    def apply(self, value: Tensor, places: Places, heads: Heads = None) -> Tensor:  # noqa: ARG002
        assert self.dial is not None
        along = value if self.direction is None else self.direction.to(value)
        return value + self.dial[:, None, :, None].to(value) * along


@dataclass(frozen=True)
class _Dials:
    """The dials of all layers, as an intervention that only torch applies."""

    edits: tuple[Edit, ...]


def attribute_heads(
    generator: TextGenerator,
    texts: str | Sequence[str],
    *,
    right: str | Sequence[str] | None = None,
    wrong: str | Sequence[str] | None = None,
    metric: Metric = "logit_difference",
) -> EffectTable:
    """How the score grows with each head's output: d score / d factor at 1, mean over the texts.

    To first order, what silencing the head would cost.
    """
    question = ask(generator, texts, right, wrong, metric=metric)
    gradients = [
        _gradient(generator, question, row, question.texts[row], None)
        for row in range(len(question.texts))
    ]
    return EffectTable.differences(
        torch.stack(gradients),
        [f"head {head}" for head in range(generator.model.config.num_heads)],
        title="What each head's output is worth, to first order",
        value_label=METRIC_NAMES[metric],
    )


def attribute_patches(
    generator: TextGenerator,
    clean: str | Sequence[str],
    corrupt: str | Sequence[str],
    *,
    right: str | Sequence[str] | None = None,
    wrong: str | Sequence[str] | None = None,
    metric: Metric = "logit_difference",
) -> EffectTable:
    """What `patch_heads` would move the score by, to first order, in the score's own units.

    The gradient of the corrupt run's score by each head's output, times what the clean run has
    more of it.
    """
    cleans = ask(generator, clean, right, metric=metric)
    corrupts = ask(generator, corrupt, wrong, metric=metric)
    question = Question(corrupts.texts, cleans.right, corrupts.right, metric)
    spec = Record(points=("attention.heads",))
    model = generator.model
    gradients = []
    for row, (one, other) in enumerate(zip(cleans.texts, corrupts.texts, strict=True)):
        seen = record(model, [one, other], spec)
        away = [seen["attention.heads", layer].diff(dim=0).neg() for layer in _layers(generator)]
        gradients.append(_gradient(generator, question, row, other, away))
    return EffectTable.differences(
        torch.stack(gradients),
        [f"head {head}" for head in range(model.config.num_heads)],
        title="What patching a head would move, to first order",
        value_label=METRIC_NAMES[metric],
    )


def _layers(generator: TextGenerator) -> range:
    return range(generator.model.config.num_layers)


def _gradient(
    generator: TextGenerator,
    question: Question,
    row: int,
    text: Sequence[int],
    directions: Sequence[Tensor] | None,
) -> Tensor:
    """The derivative of one text's score by the dials of all heads, [L, H]."""
    model = generator.model
    with torch.enable_grad():
        dials = [
            torch.zeros(1, model.config.num_heads, device=model.device, requires_grad=True)
            for _ in _layers(generator)
        ]
        edits = tuple(
            _Dial(
                "attention.heads",
                layer,
                "add",
                dial=dials[layer],
                direction=None if directions is None else directions[layer],
            )
            for layer in _layers(generator)
        )
        logits_1TV = model(torch.tensor([text], device=model.device), hooks=Hooks([_Dials(edits)]))
        score = question.score(logits_1TV[:, -1].float(), [row])
        found = torch.autograd.grad(score.sum(), dials)
    return torch.cat(found).double().cpu()
