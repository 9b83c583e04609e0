"""nnsight as a peer: interventions in a `generate` block, at each step that they are about."""

from __future__ import annotations

from typing import Any

import nnsight  # type: ignore[import-not-found,unused-ignore]
import torch
import transformers

from .changes import HEADS, Change
from .conversation import Setup, converse
from .hooking import HookingPlayer, one_word_tokenizer

EAGER, FAST = "eager", "sdpa"
"""Attention that gives its pattern away, and transformers' default, which is faster."""


class NNsight(HookingPlayer):
    """A TransformersModel in float32."""

    version = (
        f"{nnsight.__version__} (torch {torch.__version__}, transformers"
        f" {transformers.__version__})"
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        with one_word_tokenizer() as tokenizer:
            self._model: Any = nnsight.TransformersModel(
                setup.model,
                task="text-generation",
                tokenizer=tokenizer,
                dtype=torch.float32,
                dispatch=True,
            )

    def generate(self, ids_BT: torch.Tensor, new: int, change: Change | None) -> Any:
        model = self._model
        if change is None:
            return model.generate(ids_BT, **options(ids_BT, new))
        steps = 1 if change.prompt_only else new
        with model.generate(ids_BT, **options(ids_BT, new)) as tracer:
            for _ in tracer.iter[:steps]:
                change.apply(self._place(change))
            answer = tracer.result.save()
        return answer  # noqa: RET504  # a block is no place to return from

    def record(self, ids_BT: torch.Tensor, new: int, layer: int) -> Any:
        model, attention = self._model, self._model.model.layers[layer].self_attn
        model.pipeline.model.set_attn_implementation(EAGER)
        try:
            with model.generate(ids_BT, **options(ids_BT, new)) as tracer:
                patterns = nnsight.save([])
                for _ in tracer.iter[:new]:
                    patterns.append(attention.output[1])
        finally:
            model.pipeline.model.set_attn_implementation(FAST)
        return patterns

    def next_logits(self, ids_BT: torch.Tensor, change: Change) -> Any:
        model = self._model
        with model.trace(ids_BT):
            change.apply(self._place(change))
            logits = model.output.logits[0, -1].save()
        return logits  # noqa: RET504

    def _place(self, change: Change) -> Any:
        """What passes the place of a change in this step; to be written to."""
        layer = self._model.model.layers[change.layer]
        if change.point != HEADS:
            return layer.output
        heads = layer.self_attn.o_proj.input
        return heads.unflatten(-1, (-1, layer.self_attn.head_dim))


def options(ids_BT: torch.Tensor, new: int) -> dict[str, Any]:
    """Greedy generation of exactly so many tokens."""
    return {
        "attention_mask": torch.ones_like(ids_BT),
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
    }


def main() -> None:
    """Converses until the input ends."""
    converse(NNsight)
