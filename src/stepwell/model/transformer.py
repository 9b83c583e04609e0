"""The Transformer: one decoder for every family, read from top to bottom.

    ids [B, T] -> embedding -> blocks -> final norm -> head -> logits [B, T, V]

A block adds attention, then the MLP, to the residual stream, each after its own normalisation.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stepwell.errors import (
    CacheError,
    ConfigError,
    DeviceError,
    PromptError,
    ShapeError,
    suggest,
)
from stepwell.model.attention import Attention
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView
from stepwell.model.config import ModelConfig
from stepwell.model.forward import AttentionImplementation, ForwardPass
from stepwell.model.hooks import LOGITS_LAYER, Hooks
from stepwell.model.mlp import MLP
from stepwell.model.norm import make_norm
from stepwell.model.places import Places
from stepwell.model.rope import RopeTable


class Transformer(nn.Module):
    """A decoder-only language model: `model(ids)` gives logits [B, T, V] for ids [B, T] (int64).

    hooks: what reads and changes the layers in every forward that is given no hooks of its own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.attention_implementation = "auto"
        self.hooks: Hooks | None = None
        self.embed = nn.Embedding(config.vocab_size, config.width)
        learned = config.position == "learned"
        self.position_embed = nn.Embedding(config.context_length, config.width) if learned else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config)
        own_head = not config.tie_embeddings
        self.head: nn.Module | None = (
            nn.Linear(config.width, config.vocab_size, bias=False) if own_head else None
        )
        self._rope = None if learned else RopeTable(config)

    @property
    def attention_implementation(self) -> AttentionImplementation:
        """How attention is computed. Setting it raises ConfigError for a name that is none."""
        return self._attention_implementation

    @attention_implementation.setter
    def attention_implementation(self, name: AttentionImplementation) -> None:
        known = get_args(AttentionImplementation)
        if name not in known:
            raise ConfigError(f"There is no attention {name!r}. {suggest(str(name), known)}")
        self._attention_implementation: AttentionImplementation = name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return self.embed.weight.dtype

    def forward(
        self,
        ids_BT: Tensor,
        *,
        view: CacheView | None = None,
        segments: Tensor | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Logits [B, T, V]. With a view, ids are the view's new tokens and see its rows' past.

        With `segments` [B, T], int64, a row holds several documents, one wherever the number stays
        the same. Each is read as if it were alone: from position 0, and seeing no other.
        """
        step = self._pass(ids_BT, view, segments, hooks)
        hidden_BTC = self._hidden(ids_BT, step)
        return self.logits(hidden_BTC, hooks=hooks, places=step.places)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        view: CacheView | None = None,
        segments: Tensor | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """What the head reads, [B, T, C]: the residual stream after the final norm."""
        return self._hidden(ids_BT, self._pass(ids_BT, view, segments, hooks))

    def _pass(
        self,
        ids_BT: Tensor,
        view: CacheView | None,
        segments: Tensor | None,
        hooks: Hooks | None,
    ) -> ForwardPass:
        """What the layers are told. Raises what `_check` and `_check_segments` do."""
        hooks = self.hooks if hooks is None else hooks
        self._check(ids_BT, view, hooks)
        if segments is not None:
            self._check_segments(ids_BT, view, segments)
        attention = self.attention_implementation
        return ForwardPass(
            ids_BT, view=view, segments_BT=segments, hooks=hooks, attention=attention
        )

    def _hidden(self, ids_BT: Tensor, step: ForwardPass) -> Tensor:
        x_BTC = self._embed(ids_BT, step)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x_BTC = checkpoint(
                    block, x_BTC, step, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTC = block(x_BTC, step)
        return self.final_norm(x_BTC)  # type: ignore[no-any-return]

    def logits(
        self,
        hidden_BTC: Tensor,
        *,
        hooks: Hooks | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """The head applied to hidden states [B, T, C], or to any selection of them.

        `places` tells hooks where those stand; at 0..T-1 when not given.
        """
        head = self.head
        logits_BTV: Tensor = (
            F.linear(hidden_BTC, self.embed.weight) if head is None else head(hidden_BTC)
        )
        if hooks is None:
            return logits_BTV
        if places is None:
            positions_T = torch.arange(hidden_BTC.shape[1], device=self.device)
            places = Places(positions_T.expand(hidden_BTC.shape[:2]))
        if places.positions_BT.shape != hidden_BTC.shape[:2]:
            states, positions = list(hidden_BTC.shape[:2]), list(places.positions_BT.shape)
            raise ShapeError(f"{states} hidden states have {positions} positions.")
        return hooks.at("logits", LOGITS_LAYER, logits_BTV, places)

    def cross_entropy(self, hidden_NC: Tensor, labels_N: Tensor) -> Tensor:
        """Mean cross entropy in nats of the head at N positions, in float32 at least; a scalar."""
        return F.cross_entropy(precise(self.logits(hidden_NC)), labels_N)

    def compile_parts(self) -> None:
        """Compiles each block, and the head with its loss, for all lengths (torch.compile).

        Blocks one by one and not the whole: it is as fast, and compiled once for all layers.
        """
        for block in self.blocks:
            block.compile(dynamic=True)
        compiled = torch.compile(self.cross_entropy, dynamic=True)
        setattr(self, "cross_entropy", compiled)  # noqa: B010  # mypy: a method is not assigned to

    def rope_table(self, length: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) at positions 0..length-1, [length, D] each, as every layer uses them."""
        assert self._rope is not None, "learned positions are not rotated"
        cos, sin = self._rope.first(length, self.device, self.dtype)
        return cos[0, 0], sin[0, 0]

    def new_cache(
        self, max_rows: int, context_length: int | None = None, *, num_blocks: int | None = None
    ) -> KVCache:
        """An empty cache that fits this model, on its device and in its dtype."""
        return KVCache(
            self.config,
            max_rows,
            context_length=context_length,
            num_blocks=num_blocks,
            dtype=self.dtype,
            device=self.device,
        )

    def initialize(self, seed: int) -> None:
        """Set fresh random weights, the same for the same seed whatever was drawn before.

        Matrices have standard deviation 1 / sqrt(fan in), so that a layer keeps the scale of its
        input; the two that write to the residual stream are divided by sqrt(2 * layers), as in
        GPT-2 (Radford et al. 2019).
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        into_residual = (2 * self.config.num_layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() == 1:
                    parameter.fill_(1.0)
                else:
                    scale = parameter.shape[-1] ** -0.5
                    if name.endswith(("o_proj.weight", "down.weight")):
                        scale *= into_residual
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    def _embed(self, ids_BT: Tensor, step: ForwardPass) -> Tensor:
        x_BTC: Tensor = self.embed(ids_BT)
        if self.position_embed is not None:
            return x_BTC + self.position_embed(step.positions_BT)  # type: ignore[no-any-return]
        assert self._rope is not None
        if step.is_from_zero:
            step.rope = self._rope.first(step.num_queries, x_BTC.device, x_BTC.dtype)
        else:
            step.rope = self._rope.at(step.positions_BT, step.length, x_BTC.dtype)
        return x_BTC

    def _check(self, ids_BT: Tensor, view: CacheView | None, hooks: Hooks | None) -> None:
        if ids_BT.dim() != 2 or ids_BT.is_floating_point():
            shape = list(ids_BT.shape)
            raise ShapeError(f"ids must be integers [rows, tokens], not {ids_BT.dtype} {shape}.")
        if ids_BT.device != self.device:
            raise DeviceError(
                f"ids are on {ids_BT.device}, the model is on {self.device}.",
                fix=f"ids.to({str(self.device)!r})",
            )
        if view is not None and view.positions_BT.device != self.device:
            raise DeviceError(
                f"The cache is on {view.positions_BT.device}, the model is on {self.device}.",
                fix="make the cache with model.new_cache.",
            )
        if hooks is not None:
            hooks.check(self.config)
        if view is None and ids_BT.shape[1] > self.config.context_length:
            raise PromptError(
                f"{ids_BT.shape[1]} tokens do not fit the context of {self.config.context_length}.",
                fix="shorten the text or use a model with a longer context.",
            )
        if view is not None and tuple(ids_BT.shape) != tuple(view.positions_BT.shape):
            expected = list(view.positions_BT.shape)
            raise ShapeError(f"ids are {list(ids_BT.shape)}, the cache view expects {expected}.")

    def _check_segments(self, ids_BT: Tensor, view: CacheView | None, segments: Tensor) -> None:
        if view is not None:
            raise CacheError(
                "A cache holds one document a row, so there are no segments with a view.",
                fix="give each document a row of its own.",
            )
        if segments.shape != ids_BT.shape or segments.is_floating_point():
            given, expected = f"{segments.dtype} {list(segments.shape)}", list(ids_BT.shape)
            raise ShapeError(f"segments are {given}, expected integers {expected}, as ids are.")
        if segments.device != self.device:
            raise DeviceError(
                f"segments are on {segments.device}, the model is on {self.device}.",
                fix=f"segments.to({str(self.device)!r})",
            )


def precise(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are so."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x_BTC: Tensor, step: ForwardPass) -> Tensor:
        x_BTC = step.at("residual.before", self.layer, x_BTC)
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), step)
        mlp_BTC = step.at("mlp.output", self.layer, self.mlp(self.mlp_norm(x_BTC)))
        return step.at("residual.after", self.layer, x_BTC + mlp_BTC)
