"""TransformerLens as a peer: a TransformerBridge, `generate` inside its `hooks`.

The bridge keeps the weights as they are, folds nothing, and computes attention so that its pattern
can be hooked.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import (  # type: ignore[import-not-found,unused-ignore]
    TransformerBridge,
)

from .changes import HEADS, RESIDUAL, Change
from .conversation import Setup, converse
from .hooking import HookingPlayer, one_word_tokenizer

NAMES = {HEADS: "attn.hook_z", RESIDUAL: "hook_resid_post"}


class TransformerLens(HookingPlayer):
    """A bridge to transformers' model in float32."""

    version = (
        f"{version('transformer-lens')} (torch {torch.__version__}, transformers"
        f" {transformers.__version__})"
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        with one_word_tokenizer() as tokenizer:
            self._bridge: Any = TransformerBridge.boot_transformers(
                setup.model, device="cpu", dtype=torch.float32, tokenizer=tokenizer
            )

    def generate(self, ids_BT: torch.Tensor, new: int, change: Change | None) -> Any:
        with self._bridge.hooks(fwd_hooks=hooks_of(change)):
            return self._answer(ids_BT, new)

    def record(self, ids_BT: torch.Tensor, new: int, layer: int) -> list[torch.Tensor]:
        patterns: list[torch.Tensor] = []

        def keep(pattern: torch.Tensor, hook: Any) -> None:  # noqa: ARG001  # given by name
            patterns.append(pattern)

        with self._bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", keep)]):
            self._answer(ids_BT, new)
        return patterns

    def next_logits(self, ids_BT: torch.Tensor, change: Change) -> Any:
        logits_BTV = self._bridge.run_with_hooks(ids_BT, fwd_hooks=hooks_of(change))
        return logits_BTV[0, -1]

    def _answer(self, ids_BT: torch.Tensor, new: int) -> Any:
        return self._bridge.generate(
            ids_BT,
            max_new_tokens=new,
            stop_at_eos=False,
            do_sample=False,
            use_past_kv_cache=True,
            return_type="tokens",
        )


def hooks_of(change: Change | None) -> list[tuple[str, Any]]:
    """The hook of a change, for one answer."""
    if change is None:
        return []
    first_step = iter([True])

    def changed(value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001  # as above
        if next(first_step, False) or not change.prompt_only:
            change.apply(value)
        return value

    return [(f"blocks.{change.layer}.{NAMES[change.point]}", changed)]


def main() -> None:
    """Converses until the input ends."""
    converse(TransformerLens)
