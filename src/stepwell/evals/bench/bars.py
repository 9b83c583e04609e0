"""The bars that figures are held against, by question, case, model and opponent.

A ratio to a peer belongs to the sizes of `sizes`; any other model has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stepwell.evals.bench.figures import Bar
from stepwell.evals.bench.plan import MODELS

LOSSLESS: Final = Bar(1.5)
"""Answering validation text with a draft, against the same model alone."""

BARS: Final[Mapping[tuple[str, str, str, str], Bar]] = {
    **{
        ("decode", f"1 row, {weights}", model, "llama.cpp"): Bar(value)
        for weights, values in (("bf16", (1.7, 1.2, 0.95)), ("int8", (1.6, 1.1, 0.95)))
        for model, value in zip(MODELS, values, strict=True)
    },
    **{
        ("decode", "1 row, bf16", model, "transformers"): Bar(value)
        for model, value in zip(MODELS, (12, 3.8, 3.3), strict=True)
    },
    **{
        ("decode", "16 rows, bf16", model, peer): Bar(1.2)
        for model in MODELS
        for peer in ("llama.cpp", "vllm")
    },
    **{("batch", "bf16", model, "vllm"): Bar(1.2) for model in MODELS},
    **{("bandwidth", "bf16", model, "read-only pass"): Bar(0.9) for model in ("110m", "443m")},
    ("load", "first token", "443m", ""): Bar(1.0, "at most", of="ours"),
    **{("load", "memory", model, "size of the weights"): Bar(1.1, "at most") for model in MODELS},
    ("verify", "4 tokens", "110m", "1 token"): Bar(1.1, "at most"),
    ("verify", "8 tokens", "110m", "1 token"): Bar(1.6, "at most"),
    **{
        ("train", "8 x 256, ours compiled", model, "transformers"): Bar(value)
        for model, value in (("14m", 1.05), ("110m", 1.25))
    },
    ("train", "6 N, compiled", "110m", "bf16 products"): Bar(0.7),
    **{("hooks", "idle", model, "no hooks"): Bar(0.98) for model in MODELS},
    **{("hooks", "recording, 16 rows", model, "no recording"): Bar(0.7) for model in MODELS},
    **{("hooks", "head zeroed", "14m", peer): Bar(3) for peer in ("nnsight", "transformer-lens")},
}
