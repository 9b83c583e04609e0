"""Causal self-attention: multi-head, grouped or multi-query, with or without cache and window."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepwell.errors import DeviceError
from stepwell.model.config import ModelConfig
from stepwell.model.forward import ForwardPass
from stepwell.model.hooks import PATTERN, Heads
from stepwell.model.norm import make_norm
from stepwell.model.rope import rotate

SHORT = 384
"""Up to so many keys compiled code on a CPU computes the pattern in less time than the kernel of
scaled_dot_product_attention takes (see docs/log.md)."""


class Attention(nn.Module):
    """Scaled dot-product attention of one layer, with its projections."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.window = config.sliding_window if layer in config.sliding_layers else None
        self.scale = _score_scale(config, layer)
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.width, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.width, bias=config.output_bias)
        self.q_norm = make_norm(config, self.head_dim) if config.qk_norm else None
        self.k_norm = make_norm(config, self.head_dim) if config.qk_norm else None

    def forward(self, x_BTC: Tensor, step: ForwardPass) -> Tensor:
        q_BHTD = self._split(self.q_proj(x_BTC), self.q_norm)
        k_BGTD = self._split(self.k_proj(x_BTC), self.k_norm)
        v_BGSD = self._split(self.v_proj(x_BTC), None)
        if step.rope is not None:
            q_BHTD, k_BGTD = rotate(q_BHTD, *step.rope), rotate(k_BGTD, *step.rope)
        k_BGSD = k_BGTD
        if step.view is not None:
            k_BGSD, v_BGSD = step.view.update(self.layer, k_BGTD, v_BGSD)
        heads_BTHD = self._attend(q_BHTD, k_BGSD, v_BGSD, step).transpose(1, 2)
        heads_BTHD = step.at("attention.heads", self.layer, heads_BTHD)
        return step.at("attention.output", self.layer, self.o_proj(heads_BTHD.flatten(2)))

    def _split(self, x_BTC: Tensor, norm: nn.Module | None) -> Tensor:
        """[B, T, N * D] -> [B, N, T, D], normalised over D where the family does so."""
        x_BTND = x_BTC.view(*x_BTC.shape[:2], -1, self.head_dim)
        x_BTND = norm(x_BTND) if norm else x_BTND
        return x_BTND.transpose(1, 2)

    def _attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, step: ForwardPass) -> Tensor:
        """Each head's mixture of values, [B, H, T, D]."""
        if self._is_explicit(q_BHTD, step):
            return self._attend_by_pattern(q_BHTD, k_BGSD, v_BGSD, step, None)
        attend = _flash_attention if step.attention == "flash" else _attention
        mask = step.mask(self.window)
        mixture_BHTD = attend(q_BHTD, k_BGSD, v_BGSD, mask, self.scale)
        if not step.wants(PATTERN, self.layer):
            return mixture_BHTD
        return self._show_pattern(mixture_BHTD, (q_BHTD, k_BGSD, v_BGSD), step)

    def _show_pattern(
        self, mixture_BHTD: Tensor, qkv: tuple[Tensor, Tensor, Tensor], step: ForwardPass
    ) -> Tensor:
        """The mixture, anew for heads whose pattern is changed; a pattern is only shown if read."""
        assert step.hooks is not None
        heads = step.hooks.heads(PATTERN, self.layer)
        by_pattern = self._attend_by_pattern(*qkv, step, heads)
        if not step.changes_pattern(self.layer):
            return mixture_BHTD
        if heads is None:
            return by_pattern
        index = torch.tensor(heads, device=by_pattern.device)
        return mixture_BHTD.index_copy(1, index, by_pattern)

    def _attend_by_pattern(
        self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, step: ForwardPass, heads: Heads
    ) -> Tensor:
        """The mixtures of some heads, all where None, by way of their pattern."""
        repeats, seen = self.num_heads // self.num_kv_heads, step.seen(self.window)
        k_BHSD, v_BHSD = _repeated(k_BGSD, repeats), _repeated(v_BGSD, repeats)
        if heads is not None:
            index = torch.tensor(heads, device=q_BHTD.device)
            q_BHTD, k_BHSD, v_BHSD = (
                each.index_select(1, index) for each in (q_BHTD, k_BHSD, v_BHSD)
            )
        pattern = self._pattern(q_BHTD, k_BHSD, seen)
        return step.at(PATTERN, self.layer, pattern, allowed=seen, heads=heads) @ v_BHSD

    def _is_explicit(self, q_BHTD: Tensor, step: ForwardPass) -> bool:
        """Whether all go by way of the pattern: that is asked for, or it is faster."""
        if step.attention == "eager":
            return True
        compiled = torch.compiler.is_compiling() and step.attention == "auto" and q_BHTD.is_cpu
        return compiled and step.view is None and step.length <= SHORT

    def _pattern(self, q_BHTD: Tensor, k_BHSD: Tensor, seen: Tensor) -> Tensor:
        """Attention probabilities, [B, H, T, S], softmax in float32."""
        scores = (q_BHTD @ k_BHSD.transpose(2, 3)).float() * self.scale
        return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q_BHTD.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Each head's mixture of values; without a mask causal, or one query that sees all keys."""
    causal = mask is None and q.shape[2] > 1
    repeats = q.shape[1] // k.shape[1]
    grouped = repeats > 1 and (q.is_cpu or mask is None)
    if not grouped:  # on a GPU no fused kernel takes both a mask and fewer key heads
        k, v = _repeated(k, repeats), _repeated(v, repeats)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _repeated(x_BGSD: Tensor, repeats: int) -> Tensor:
    """Keys or values with each head repeated for its group of query heads, [B, H, S, D]."""
    return x_BGSD if repeats == 1 else x_BGSD.repeat_interleave(repeats, 1)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`_attention` by the flash kernel. Raises DeviceError where that cannot compute it."""
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return _attention(q, k, v, mask, scale)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        masked = "" if mask is None else " under a mask, as rows of different lengths need"
        raise DeviceError(
            f"Flash attention does not run on {q.device} in {q.dtype}{masked}.",
            fix='use attention "auto"; on a GPU, flash needs float16 or bfloat16 and no mask.',
        ) from error


def _score_scale(config: ModelConfig, layer: int) -> float:
    scale = 1 / math.sqrt(config.head_dim) if config.scale_attention else 1.0
    return scale / (layer + 1) if config.scale_attention_by_layer else scale
