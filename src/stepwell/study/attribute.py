"""Attribution by gradients: what patching or silencing a head would do, to first order.

One forward and one backward pass for all heads, where patching takes a forward for each. The effect
of a small step along a direction is its product with the gradient (attribution patching: Nanda
2023; gates of heads: Michel et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from stepwell.generate.record import record
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.hooks import Call, Hooks
from stepwell.model.transformer import Transformer, precise
from stepwell.study.effects import EffectTable, head_names
from stepwell.study.metric import METRIC_NAMES, Metric
from stepwell.study.pairs import ask_pairs
from stepwell.study.question import Question, Texts, ask

POINT = "attention.heads"


def attribute_heads(
    generator: TextGenerator,
    texts: Texts,
    *,
    right: Texts | None = None,
    wrong: Texts | None = None,
    metric: Metric = "logit_difference",
) -> EffectTable:
    """How the score grows with each head's output: d score / d factor at 1, mean over the texts.

    To first order, what silencing the head would cost.
    """
    question = ask(generator, texts, right, wrong, metric=metric)
    gradients = [_gradient(generator.model, question, row) for row in range(len(question.texts))]
    return EffectTable.differences(
        torch.stack(gradients),
        head_names(generator.model.config),
        title="What each head's output is worth, to first order",
        value_label=METRIC_NAMES[metric],
    )


def attribute_patches(
    generator: TextGenerator,
    clean: Texts,
    corrupt: Texts,
    *,
    right: Texts | None = None,
    wrong: Texts | None = None,
    metric: Metric = "logit_difference",
) -> EffectTable:
    """What `patch_heads` would move the score by, to first order, in the score's own units.

    The gradient of the corrupt run's score by each head's output, times what the clean run has
    more of it. Raises PromptError for texts that do not pair or that the model answers alike.
    """
    pairs = ask_pairs(generator, clean, corrupt, right, wrong, metric)
    model = generator.model
    gradients = []
    for row, both in enumerate(zip(pairs.corrupt.texts, pairs.clean.texts, strict=True)):
        seen = record(model, both, Record(points=(POINT,)))
        directions = [seen[POINT, layer].diff(dim=0) for layer in range(model.config.num_layers)]
        gradients.append(_gradient(model, pairs.corrupt, row, directions))
    return EffectTable.differences(
        torch.stack(gradients),
        head_names(model.config),
        title="What patching a head would move, to first order",
        value_label=METRIC_NAMES[metric],
    )


def _gradient(
    model: Transformer,
    question: Question,
    row: int,
    directions: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """The derivative of one text's score by the dials of all heads, [L, H], float64 on the CPU.

    directions: what the dials of each layer add, [1, T, H, D]; the heads' own output where None.
    """
    ids_1T = torch.tensor([question.texts[row]], device=model.device)
    shape = model.config.num_layers, model.config.num_heads
    kind = torch.promote_types(model.dtype, torch.float32)
    with torch.enable_grad():
        dials_LH = torch.zeros(shape, dtype=kind, device=model.device, requires_grad=True)
        along = directions or [None] * len(dials_LH)
        changes = [
            Call(POINT, layer, partial(_moved, dial=dial, direction=direction))
            for layer, (dial, direction) in enumerate(zip(dials_LH, along, strict=True))
        ]
        hooks = Hooks(changes, prompt_lengths=[ids_1T.shape[1]])
        logits_1V = model.logits(model.hidden(ids_1T, hooks=hooks)[:, -1:], hooks=None)[:, 0]
        score_1 = question.score(precise(logits_1V), [row])
        [gradient_LH] = torch.autograd.grad(score_1.sum(), dials_LH)
    return gradient_LH.double().cpu()


def _moved(heads_1THD: Tensor, *, dial: Tensor, direction: Tensor | None) -> Tensor:
    """Each head's output plus its dial [H] times a direction: a given one, or the output itself."""
    along = heads_1THD if direction is None else direction.to(heads_1THD)
    return heads_1THD + dial[:, None].to(heads_1THD) * along
