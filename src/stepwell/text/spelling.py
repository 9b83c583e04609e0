"""How tokens are spelled: the visible characters that stand for bytes, and the steps of a decoder.

Owns what has to be known of a vocabulary's spelling to read single tokens. Whole sequences are
encoded and decoded by the `tokenizers` library.
"""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers


def _byte_characters() -> tuple[str, ...]:
    """The visible character that stands for each byte, by byte.

    Printable bytes of Latin-1 stand for themselves, the others for U+0100 onwards in order.
    Source: Radford et al. 2019 (GPT-2), the alphabet of byte-level BPE.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_bytes(token: str) -> bytes:
    """The bytes that a byte-level decoder makes of one token.

    A token with a character outside the byte alphabet (an added token) stands for itself.
    """
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def fallback_token(byte: int) -> str:
    """The token that SentencePiece-like vocabularies fall back to for one byte, such as <0xE2>."""
    return f"<0x{byte:02X}>"


def is_fallback_token(token: str) -> bool:
    """Whether the token stands for one byte of a character that the vocabulary lacks."""
    return _FALLBACK.fullmatch(token) is not None


def decoder_steps(core: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The steps of the tokenizer's decoder in order, as its file describes them; nesting undone."""
    return _flat(json.loads(core.decoder.__getstate__())) if core.decoder is not None else []


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step["decoders"] for part in _flat(inner)]


def is_byte_level(steps: list[dict[str, Any]]) -> bool:
    """Whether decoding is the bytes of all tokens, joined and read as UTF-8."""
    kinds = {step["type"] for step in steps}
    return "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
