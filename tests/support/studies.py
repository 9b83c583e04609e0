"""Scores of a model whose heads are changed by torch's own hooks, one text at a time.

An independent way to what `stepwell.study` computes with interventions in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from stepwell.generate.text import TextGenerator
from stepwell.model.transformer import Transformer

Change = Callable[[Tensor], Tensor]
"""From what an output projection reads, [1, T, H, D], to what it is to read."""


def heads_of(generator: TextGenerator, text: str) -> list[Tensor]:
    """What each layer's output projection reads in a plain forward, [1, T, H, D] each."""
    seen: list[Tensor] = []

    def keep(layer: int) -> Change:
        return lambda heads_1THD: seen.append(heads_1THD.clone()) or heads_1THD

    last_logits(generator, text, {layer: keep(layer) for layer in layers(generator.model)})
    return seen


def layers(model: Transformer) -> range:
    return range(model.config.num_layers)


@torch.no_grad()
def last_logits(
    generator: TextGenerator, text: str, changes: Mapping[int, Change] | None = None
) -> Tensor:
    """Logits behind the last token of a text, [V], where layers' heads are changed."""
    model, config = generator.model, generator.model.config
    with ExitStack() as stack:
        for layer, change in (changes or {}).items():

            def put(_module: object, given: tuple[Tensor], change: Change = change) -> Tensor:
                heads = given[0].unflatten(-1, (config.num_heads, config.head_dim))
                return change(heads).flatten(2)

            projection = model.blocks[layer].attention.o_proj
            stack.enter_context(projection.register_forward_pre_hook(put))
        return model(torch.tensor([generator.tokenizer.encode(text)]))[0, -1]


def difference(
    generator: TextGenerator,
    text: str,
    right: str,
    wrong: str,
    changes: Mapping[int, Change] | None = None,
) -> float:
    """The logit of the right answer less that of the wrong one."""
    logits_V = last_logits(generator, text, changes).double()
    [[one], [other]] = map(generator.tokenizer.encode, (right, wrong))
    return float(logits_V[one] - logits_V[other])


def with_head(head: int, change: Change) -> Change:
    """A change of one head, [1, T, D]."""

    def put(heads_1THD: Tensor) -> Tensor:
        changed = heads_1THD.clone()
        changed[:, :, head] = change(heads_1THD[:, :, head])
        return changed

    return put


def put_head(head: int, values_1THD: Tensor) -> Change:
    """The change that gives one head the output that it has in other values."""
    return with_head(head, lambda _: values_1THD[:, :, head])


def zeroed(head: int) -> Change:
    """The change that silences one head."""
    return with_head(head, torch.zeros_like)
