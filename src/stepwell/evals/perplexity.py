"""How well a model predicts a text: its perplexity, by torch or by the kernels that decode.

A text longer than the context is read in windows. Owns the windows and what is counted; what a
token is comes with the ids, or from a generator's tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stepwell.errors import ConfigError, DeviceError, LogitsError, PromptError
from stepwell.generate.executor import Chunk, NativeExecutor
from stepwell.generate.text import TextGenerator
from stepwell.model.native import native_decoder
from stepwell.model.transformer import Transformer

AT_ONCE = 256
"""Positions whose logits are in memory together."""


@dataclass(frozen=True)
class Perplexity:
    """The sum of -log p over `num_tokens` tokens that were predicted, in nats.

    num_bytes: how long these tokens are as text in UTF-8, where that is known.
    """

    nats: float
    num_tokens: int
    num_bytes: int | None = None

    @property
    def nats_per_token(self) -> float:
        """The mean of -log p."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean: among how many equally likely tokens the model might as well choose."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float | None:
        """What compares models with different tokenizers; None where no text was given."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None


class Window(NamedTuple):
    """Tokens `begin` to `end` are read; those after position `scored` predict the next ones."""

    begin: int
    scored: int
    end: int


class _Reader(Protocol):
    def __call__(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """The logits [N, V] of all tokens, in parts."""


@torch.inference_mode()
def perplexity(
    model: Transformer,
    ids: Sequence[int],
    *,
    context_length: int | None = None,
    stride: int | None = None,
    kernels: bool = False,
) -> Perplexity:
    """How well the model predicts each token but the first from those before it.

    context_length: tokens in a window; None is the model's. stride: by how many the next window
    begins later; None is a window, so that the first tokens of each see little. A smaller stride
    costs more and lets each token but those of the first window see at least
    context_length - stride before it.
    kernels: compute as decoding on a CPU does, by the native kernels; with 8-bit weights these
    round what they multiply with to 8 bits too. Slower than torch.

    Raises PromptError for ids that cannot be scored, ConfigError for windows that cannot be,
    DeviceError where there are no kernels for the model, LogitsError for logits that are NaN.
    """
    context_length = model.config.context_length if context_length is None else context_length
    stride = context_length if stride is None else stride
    _check(model, ids, context_length, stride)
    read = _kernel_reader(model, context_length) if kernels else _torch_reader(model)
    nats = 0.0
    for window in windows(len(ids), context_length, stride):
        nats += _nats(read, ids, window)
    if math.isnan(nats):
        raise LogitsError("The model's logits are NaN, so that nothing can be measured.")
    return Perplexity(nats, len(ids) - 1)


def perplexity_of_text(
    generator: TextGenerator,
    text: str,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    kernels: bool = False,
) -> Perplexity:
    """`perplexity` of a text, with its bytes.

    The text stands behind the beginning-of-sequence token, where the tokenizer has one; else its
    first token is not predicted, and its bytes are not counted.
    """
    tokenizer = generator.tokenizer
    ids, spans = tokenizer.encode_with_offsets(text)
    skipped = 0
    if tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    elif len(spans) > 1:
        skipped = spans[1][0]
    found = perplexity(
        generator.model, ids, context_length=context_length, stride=stride, kernels=kernels
    )
    return replace(found, num_bytes=len(text[skipped:].encode()))


def windows(num_tokens: int, context_length: int, stride: int) -> Iterator[Window]:
    """Windows that together predict each token but the first once, each as early as it can."""
    begin = scored = 0
    while scored < num_tokens - 1:
        end = min(begin + context_length, num_tokens - 1)
        yield Window(begin, scored, end)
        begin, scored = begin + stride, end


def _nats(read: _Reader, ids: Sequence[int], window: Window) -> float:
    """The sum of -log p of what follows the scored positions, added in float64."""
    labels = torch.tensor(ids[window.begin + 1 : window.end + 1])
    place, total = window.begin, 0.0
    for logits_NV in read(ids[window.begin : window.end]):
        skipped = max(0, window.scored - place)
        wanted_NV = logits_NV[skipped:].float().log_softmax(-1)
        labels_N = labels[place - window.begin :][: len(logits_NV)][skipped:]
        chosen_N = wanted_NV.gather(-1, labels_N.to(wanted_NV.device)[:, None])
        total -= float(chosen_N.double().sum())
        place += len(logits_NV)
    return total


def _torch_reader(model: Transformer) -> _Reader:
    def read(ids: Sequence[int]) -> Iterator[Tensor]:
        [hidden_TC] = model.hidden(torch.tensor([ids], device=model.device))
        for part_NC in torch.split(hidden_TC, AT_ONCE):
            yield model.logits(part_NC[None])[0]

    return read


def _kernel_reader(model: Transformer, context_length: int) -> _Reader:
    decoder = native_decoder(model)
    if decoder is None:
        raise DeviceError(
            f"There are no native kernels for this model, in {model.dtype} on {model.device}.",
            fix="leave kernels out; `stepwell doctor` says which there are.",
        )
    cache = model.new_cache(1, context_length)
    executor = NativeExecutor(decoder, cache)

    def read(ids: Sequence[int]) -> Iterator[Tensor]:
        row = cache.allocate()
        for start in range(0, len(ids), AT_ONCE):
            part = ids[start : start + AT_ONCE]
            yield executor.run([Chunk(row, part, wanted=len(part))]).logits
        cache.release(row)

    return read


def _check(model: Transformer, ids: Sequence[int], context_length: int, stride: int) -> None:
    if len(ids) < 2:
        raise PromptError(f"{len(ids)} tokens hold none to predict from another; give two or more.")
    wrong = next((token for token in ids if not 0 <= token < model.config.vocab_size), None)
    if wrong is not None:
        raise PromptError(
            f"Token id {wrong} is not in the model's vocabulary of {model.config.vocab_size}."
        )
    if not 1 <= context_length <= model.config.context_length:
        raise ConfigError(
            f"context_length is {context_length}, expected 1 to {model.config.context_length}."
        )
    if not 1 <= stride <= context_length:
        raise ConfigError(f"stride is {stride}, expected 1 to the context of {context_length}.")
