"""Tokenizers made here: of characters, of bytes, and byte-level BPE trained on texts.

Each function returns a fresh `tokenizers.Tokenizer`, with the tokens of the roles added as special.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stepwell.errors import ConfigError
from stepwell.text.spelling import BYTE_CHARACTERS


def character_core(alphabet: Iterable[str], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    """One token for each character of the alphabet, in its order, then the tokens of the roles.

    Raises ConfigError where the alphabet is empty or holds anything but single characters.
    """
    characters = list(dict.fromkeys(alphabet))
    odd = next((entry for entry in characters if len(entry) != 1), None)
    if odd is not None or not characters:
        raise ConfigError(
            f"A character tokenizer needs an alphabet of single characters, got {odd!r}."
            if characters
            else "A character tokenizer needs an alphabet, got an empty one."
        )
    taken = next((token for token in roles.values() if token in characters), None)
    if taken is not None:
        raise ConfigError(f"The token {taken!r} of a role is a character of the alphabet too.")
    vocabulary = {character: index for index, character in enumerate(characters)}
    unknown = roles.get("unk")
    if unknown is not None:
        vocabulary[unknown] = len(vocabulary)
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    # `.` would leave out the newline
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return _with_roles(core, roles)


def byte_core(roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    """One token for each byte, its id the byte's value, then the tokens of the roles."""
    vocabulary = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
    return _with_roles(byte_level(models.BPE(vocabulary, []), split_words=False), roles)


def trained_core(
    texts: Iterable[str], vocab_size: int, roles: Mapping[str, str]
) -> tokenizers.Tokenizer:
    """Byte-level BPE of `vocab_size` tokens with those of the roles, the same for the same texts.

    The vocabulary is smaller where the texts hold too few pairs to merge. Raises ConfigError where
    `vocab_size` leaves no room for the 256 bytes.
    """
    num_special = len(set(roles.values()))
    if vocab_size < 256 + num_special:
        raise ConfigError(
            f"vocab_size is {vocab_size}, too few for 256 bytes and {num_special} special tokens.",
            fix=f"ask for at least {256 + num_special}.",
        )
    core = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_special,
        min_frequency=0,
        initial_alphabet=list(BYTE_CHARACTERS),
        show_progress=False,
    )
    core.train_from_iterator([texts] if isinstance(texts, str) else texts, trainer)
    return _with_roles(core, roles)


def byte_level(
    model: models.BPE, *, prefix_space: bool = False, split_words: bool = True
) -> tokenizers.Tokenizer:
    """A tokenizer whose model sees bytes, split into words as GPT-2 splits them by default."""
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=prefix_space, use_regex=split_words
    )
    core.decoder = decoders.ByteLevel()
    return core


def _with_roles(core: tokenizers.Tokenizer, roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    core.add_special_tokens(list(dict.fromkeys(roles.values())))
    return core
