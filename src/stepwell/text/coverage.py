"""Which characters a tokenizer without an unknown token can spell, and the error where it cannot.

Owns the check that no character of a text is lost. Where the vocabulary lacks a character, the
`tokenizers` library raises a bare Exception for some models and drops the character for others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import tokenizers
from tokenizers import models

from stepwell.errors import PromptError
from stepwell.text.spelling import BYTE_CHARACTERS, fallback_token

_SHOWN_CHARACTERS = 100


def may_drop(core: tokenizers.Tokenizer) -> bool:
    """Whether encoding can lose characters without an error.

    True of BPE that has neither an unknown token nor all 256 bytes.
    """
    model = core.model
    if not isinstance(model, models.BPE) or model.unk_token is not None:
        return False
    if model.byte_fallback and _has_all(model, map(fallback_token, range(256))):
        return False
    return not (_works_on_bytes(core) and _has_all(model, BYTE_CHARACTERS))


def _works_on_bytes(core: tokenizers.Tokenizer) -> bool:
    parts = (core.normalizer, core.pre_tokenizer)
    return any(b'"ByteLevel"' in part.__getstate__() for part in parts if part is not None)


def _has_all(model: models.Model, tokens: Iterator[str] | tuple[str, ...]) -> bool:
    return all(model.token_to_id(token) is not None for token in tokens)


def missing(core: tokenizers.Tokenizer, text: str) -> tuple[int, str] | None:
    """Position and text of the first part of `text` that has no token, None where all of it has.

    The part is a character, or a word where the vocabulary is one of words.
    """
    for start, plain in _between_added_tokens(core, text):
        for piece, first, last in _pieces(core, plain):
            lost = _lost(core.model, piece)
            if lost is None:
                continue
            if len(piece) == last - first:
                return start + first + lost[0], lost[1]
            return start + first, plain[first:last]
    return None


def _between_added_tokens(core: tokenizers.Tokenizer, text: str) -> Iterator[tuple[int, str]]:
    """The stretches of text that the vocabulary's model gets to see, each with its position."""
    added = [token.content for token in core.get_added_tokens_decoder().values()]
    longest_first = sorted(added, key=len, reverse=True)
    start = 0
    if longest_first:
        for match in re.finditer("|".join(map(re.escape, longest_first)), text):
            yield start, text[start : match.start()]
            start = match.end()
    yield start, text[start:]


def _pieces(core: tokenizers.Tokenizer, text: str) -> list[tuple[str, int, int]]:
    """The words that the model is given, each with its range of characters in `text`."""
    split = tokenizers.PreTokenizedString(text)
    if core.normalizer is not None:
        split.normalize(core.normalizer.normalize)
    if core.pre_tokenizer is not None:
        core.pre_tokenizer.pre_tokenize(split)
    return [(piece, *span) for piece, span, _ in split.get_splits("original", "char")]


def _lost(model: models.Model, piece: str) -> tuple[int, str] | None:
    """Index and text of the first part of one word that the model has no token for."""
    if isinstance(model, models.BPE) and model.unk_token is None:
        unknown = (at for at, character in enumerate(piece) if not _has(model, character))
        at = next(unknown, None)
        return None if at is None else (at, piece[at])
    try:
        model.tokenize(piece)
    except Exception:  # the library raises nothing narrower
        return 0, piece
    return None


def _has(model: models.BPE, character: str) -> bool:
    prefix, suffix = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
    spellings = {character, prefix + character, character + suffix, prefix + character + suffix}
    if any(model.token_to_id(spelling) is not None for spelling in spellings):
        return True
    return model.byte_fallback and _has_all(model, map(fallback_token, character.encode()))


def missing_error(core: tokenizers.Tokenizer, lost: tuple[int, str], where: str) -> PromptError:
    """The error for a part of a text that the vocabulary cannot spell."""
    position, part = lost
    name = f" (U+{ord(part):04X})" if len(part) == 1 else ""
    known = sorted(token for token in core.get_vocab(with_added_tokens=False) if len(token) == 1)
    alphabet = repr("".join(known[:_SHOWN_CHARACTERS])) + "..." * (len(known) > _SHOWN_CHARACTERS)
    return PromptError(
        f"{where}the tokenizer has no token for {part!r}{name} at position {position}.",
        fix=f"use only its alphabet, {alphabet}, or a tokenizer with an unknown token or bytes.",
    )
