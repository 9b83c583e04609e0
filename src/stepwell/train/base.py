"""The model that a run begins with: its shape, its tokens and its weights.

Owns what of a task has to fit to such a model, and the rows of tokens that it did not know yet. How
a model directory is read is the business of `model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from stepwell.errors import ConfigError, DataError, TokenizerError
from stepwell.model.config import ModelConfig
from stepwell.model.config_json import read_config
from stepwell.model.directory import CONFIG, GENERATION_CONFIG, read_config_file
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.hub import locate
from stepwell.model.json_keys import read_json
from stepwell.model.rows import with_rows
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model
from stepwell.tasks.base import Task
from stepwell.tasks.chats import Chats
from stepwell.tasks.lines import LinesTask
from stepwell.text.tokenizer import Tokenizer
from stepwell.train.config import differences

BY_TOKENS: Final = ("vocab_size", "bos_id", "eos_id", "pad_id")
"""Fields of a shape that follow from the tokenizer."""

TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.json")
SHOWN: Final = 60  # characters of an example in a message


def shape_of(source: Path) -> ModelConfig:
    """The shape that config.json of a model directory, run folder, checkpoint or Hub id says."""
    directory = locate(source)
    return read_config(read_config_file(directory), where=str(directory / CONFIG))


def fitted(model: ModelConfig, task: Task) -> ModelConfig:
    """The shape with the task's vocabulary and special tokens, and room for its longest text.

    Of running text the context is a window: positions behind it would never be trained.
    """
    tokenizer, longest = task.tokenizer, task.context_length
    return model.changed(
        vocab_size=tokenizer.vocab_size,
        context_length=longest if task.is_text else max(model.context_length, longest),
        bos_id=tokenizer.bos_id,
        eos_id=_ends(task, ()),
        pad_id=tokenizer.pad_id,
    )


class Base:
    """A model directory, run folder, checkpoint or Hub id. Its weights are not read until asked."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.directory = locate(source)
        self.config = shape_of(source)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape and weights, wherever they lie and however they are cut into files."""
        return model_fingerprint(load_model(self.directory, mmap=True))

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, None where its directory has none."""
        has_one = any((self.directory / name).exists() for name in TOKENIZER_FILES)
        return Tokenizer.load(self.directory) if has_one else None

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """What its generation_config.json says."""
        path = self.directory / GENERATION_CONFIG
        return read_json(path) if path.is_file() else {}

    def fitted(self, model: ModelConfig, task: Task) -> ModelConfig:
        """Its shape, with rows for all tokens of a task, whose texts it must be long enough for.

        A vocabulary that is padded beyond the tokenizer stays so. Raises ConfigError where `model`
        is another shape, TokenizerError for another tokenizer, DataError for a longer text.
        """
        self._check_shape(model)
        tokenizer = task.tokenizer
        self._check_tokens(tokenizer)
        check_lengths(task, self.config.context_length)
        own = self.config
        return own.changed(
            vocab_size=max(own.vocab_size, tokenizer.vocab_size),
            bos_id=own.bos_id if tokenizer.bos_id is None else tokenizer.bos_id,
            eos_id=_ends(task, (*own.eos_ids, *self._declared_ends)),
            pad_id=own.pad_id if tokenizer.pad_id is None else tokenizer.pad_id,
        )

    def model(self, config: ModelConfig) -> Transformer:
        """Its weights in float32, with the rows that a fitted shape has more."""
        return with_rows(load_model(self.directory, dtype=torch.float32, mmap=False), config)

    def new_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens of a fitting tokenizer that its own does not have."""
        if self.tokenizer is None:
            return list(range(self.config.vocab_size, tokenizer.vocab_size))
        known = self.tokenizer.core.get_vocab(with_added_tokens=True).values()
        return sorted(set(tokenizer.core.get_vocab(with_added_tokens=True).values()) - set(known))

    @property
    def _declared_ends(self) -> tuple[int, ...]:
        value = self.generation.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        return tuple(each for each in values if type(each) is int)

    def _check_shape(self, model: ModelConfig) -> None:
        own, given = (
            {key: value for key, value in config.plain().items() if key not in BY_TOKENS}
            for config in (self.config, model)
        )
        changed = differences(own, given)
        if changed:
            raise ConfigError(
                f"init_from: {self.source} has another shape than `model`: {changed[0]}.",
                fix="leave `model` out: the shape is that of init_from.",
            )

    def _check_tokens(self, tokenizer: Tokenizer) -> None:
        fix = f"give the task the base's own: tokenizer_from={self.source}."
        if self.tokenizer is None:
            if tokenizer.vocab_size < self.config.vocab_size:
                raise TokenizerError(
                    f"The task's tokenizer has {tokenizer.vocab_size} tokens, {self.source} has"
                    f" {self.config.vocab_size} and no tokenizer that says which.",
                    fix="put the tokenizer's files into the base's directory.",
                )
            return
        ids = tokenizer.core.get_vocab(with_added_tokens=True)
        known = self.tokenizer.core.get_vocab(with_added_tokens=True)
        odd = next((token for token, index in known.items() if ids.get(token) != index), None)
        if odd is not None:
            now = f"has the id {ids[odd]}" if odd in ids else "is missing"
            raise TokenizerError(
                f"The task's tokenizer ({len(ids)} tokens) is not that of {self.source}"
                f" ({len(known)}): {odd!r} has the id {known[odd]} there, and here it {now}.",
                fix=fix,
            )


def check_lengths(task: Task, context_length: int) -> None:
    """Nothing; raises DataError, naming the text, where one of the task's does not fit."""
    if not isinstance(task, LinesTask):
        longest, text = task.context_length, "its longest text"
    else:
        lengths = [len(task.encode(example).ids) for example in task.examples]
        longest = max(lengths)
        example = task.examples[lengths.index(longest)]
        text = f"the example {example.text[:SHOWN]!r}"
    if longest > context_length:
        fix = "take a base with a longer context, or shorter texts."
        if isinstance(task, Chats):
            fix = f"leave longer ones out: max_tokens={context_length} (--max-tokens)."
        raise DataError(
            f"Task {task.name}: {text} has {longest} tokens, more than the context of"
            f" {context_length} that the model has.",
            fix=fix,
        )


def _ends(task: Task, more: tuple[int, ...]) -> int | tuple[int, ...] | None:
    """All tokens that end what is said: the task's, and `more`."""
    ids = task.end_ids.union(more)
    return min(ids, default=None) if len(ids) < 2 else tuple(sorted(ids))
