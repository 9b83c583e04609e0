"""Prompts for whole answers: the beginnings of a text's parts, or random ids where there is none.

Owns the text file, and the tokenizer of a model that has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stepwell.errors import DataError
from stepwell.evals.bench.peers.conversation import random_prompts
from stepwell.evals.bench.plan import BenchPlan
from stepwell.text.tokenizer import Tokenizer

RANDOM: Final = "random ids"
"""The note of a row whose prompts are no text."""
LONGEST_TOKEN: Final = 32
"""Characters that are read of a part for each token wanted; few texts have longer ones."""
MEANINGLESS: Final = range(0xF0000, 0xFFFFE)
"""Characters for private use."""


def prompts_of(directory: Path, vocab_size: int, plan: BenchPlan) -> list[list[int]]:
    """The ids of each prompt, `plan.answer_tokens` of them.

    Raises DataError where the text is too short, and TokenizerError where the model cannot read.
    """
    count, length = plan.prompts, plan.answer_tokens
    if plan.text is None:
        return random_prompts(0, [length] * count, vocab_size)
    tokenizer, text = Tokenizer.load(directory), text_of(plan.text)
    part = len(text) // count
    starts = [part * number for number in range(count)]
    windows = [text[start : start + min(part, LONGEST_TOKEN * length)] for start in starts]
    prompts = [ids[:length] for ids in tokenizer.encode_batch(windows, special=True)]
    shortest = min(map(len, prompts))
    if shortest < length:
        raise DataError(
            f"A part of {plan.text} in {count} has {shortest} tokens, expected {length}.",
            fix="give a longer text, or lower --prompts or --answer-tokens.",
        )
    return prompts


def note_of(plan: BenchPlan) -> str:
    """What is to be said of the prompts, if anything."""
    return RANDOM if plan.text is None else ""


def text_of(path: Path) -> str:
    """The whole text. Raises DataError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from None


def tokenizer_of(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of the model; where it has none, one that spells each id as a character."""
    if any((directory / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return Tokenizer.load(directory)
    return Tokenizer.character(map(chr, MEANINGLESS[:vocab_size]))
