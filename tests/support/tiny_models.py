"""Models too small to know anything, which nevertheless answer at length and come to an end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors

from stepwell.cascade.stage import Reply
from stepwell.generate.text import TextGenerator
from stepwell.model.presets import presets
from stepwell.model.transformer import Transformer
from stepwell.model.weights import save_model
from stepwell.text.tokenizer import Tokenizer

TEXT = "the cat sat on a mat and then it ran to the dog that had a hat on the log; counting one two"
PROMPTS = ["the cat", "a dog sat on", "1 2 3", "five", "then it", "the hat and", "log; 7", "it"]
CONTEXT = 128
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}


def word_tokenizer(*, begins: bool = True) -> Tokenizer:
    """A byte-level BPE whose tokens do cross from a prompt to its answer.

    begins: whether a text begins with a token of its own.
    """
    words = [*TEXT.split(), "three", "four", "five"]
    turned = [" ".join(words[start:] + words[:start]) for start in range(len(words))]
    texts = [f"{line}. 0 1 2 3 4 5 6 7 8 9\n" for line in turned]
    roles = {"bos": "<s>", "eos": "</s>"} if begins else {"eos": "</s>"}
    made = Tokenizer.train_bpe(texts, 318 + len(roles), roles)
    if begins:
        made.core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.bos_id)]
        )
    return made


def tiny_model(tokenizer: Tokenizer, seed: int) -> Transformer:
    """A Llama with random weights that says mostly letters, and now and then that it is done."""
    config = presets["tiny"].changed(
        vocab_size=tokenizer.vocab_size,
        context_length=CONTEXT,
        tie_embeddings=False,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
    model = Transformer(config)
    model.initialize(seed)
    scale = torch.full((tokenizer.vocab_size, 1), 0.2)
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token(token)
        if text.isascii() and text.isprintable() and "\\x" not in text:
            scale[token] = 1.5
    scale[list(tokenizer.special_ids)] = 0.2
    scale[tokenizer.eos_id] = 2.2
    with torch.no_grad():
        model.head.weight.mul_(scale)
    return model


def save_tiny(directory: Path, seed: int = 0, *, begins: bool = True) -> Path:
    """A model directory with such a model and its tokenizer."""
    tokenizer = word_tokenizer(begins=begins)
    save_model(tiny_model(tokenizer, seed), directory)
    tokenizer.save(directory)
    return directory


def own_answers(generator: TextGenerator, **sampling: Any) -> list[str]:
    """The texts that a model answers to PROMPTS."""
    batches = generator.generate_batch(PROMPTS, **sampling)
    return [answer.text for [answer] in batches]


def texts(replies: Sequence[Reply]) -> list[str]:
    """The texts of replies."""
    return [reply.completion.text for reply in replies]
