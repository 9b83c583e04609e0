"""Text of tokens that arrive one by one, each piece of it final.

Owns when text is final. What ids decode to is the tokenizer's: the pieces put together are exactly
`Tokenizer.decode` of all ids. Work per token does not grow with what came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Protocol

import tokenizers

from stepwell.text.spelling import decoder_steps, is_byte_level, is_fallback_token, token_bytes
from stepwell.text.tokenizer import Tokenizer

# Steps that look at single tokens, or runs of byte tokens, and at most at whether one is the first.
_TOKENWISE = {"Replace", "ByteFallback", "Strip", "Metaspace", "WordPiece"}


class IncrementalDecoder:
    """The text of one sequence of ids, as `push` and finally `flush` return it in pieces.

    Text comes as soon as no later token can change it. With bytes that are no UTF-8 it holds
    U+FFFD just where `Tokenizer.decode` has it.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._stream = _stream(tokenizer.core)

    def push(self, token_id: int) -> str:
        """The text that is final now that this token has arrived; maybe none, maybe older text."""
        token = self._tokenizer.piece(token_id)
        if token is None or token_id in self._skipped:
            return ""
        return self._stream.push(token)

    def flush(self) -> str:
        """The text still held back. The next `push` begins a new sequence."""
        return self._stream.flush()


class _Stream(Protocol):
    def push(self, token: str) -> str: ...

    def flush(self) -> str: ...


def _stream(core: tokenizers.Tokenizer) -> _Stream:
    steps = decoder_steps(core)
    if is_byte_level(steps):
        return _ByteStream()
    return _WindowStream(
        " ".join if core.decoder is None else core.decoder.decode,
        joins_bytes=any(step["type"] == "ByteFallback" for step in steps),
        appends=_appends(steps),
    )


def _appends(steps: list[dict[str, Any]]) -> bool:
    """Whether a further token never changes the text that the tokens before it gave.

    Known of steps that work token by token, and of those that then work on the whole text only if
    all they touch is its beginning.
    """
    kinds = [step["type"] for step in steps]
    tokenwise = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    return set(kinds[:tokenwise]) <= _TOKENWISE and all(
        step["type"] == "Fuse" or (step["type"] == "Strip" and step["stop"] == 0)
        for step in steps[tokenwise:]
    )


class _ByteStream:
    """Tokens that are bytes: text is final up to the last character begun and not complete."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        return self._utf8.decode(token_bytes(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowStream:
    """Any other decoder: the text that the pending tokens add to a few that stand before them.

    A run of byte tokens is pending until another token ends it: if any byte of it turns out not to
    be UTF-8, decoding replaces all of them. Where a decoder may still change old text, all is
    pending until the flush.
    """

    def __init__(
        self, decode: Callable[[list[str]], str], *, joins_bytes: bool, appends: bool
    ) -> None:
        self._decode = decode
        self._joins_bytes = joins_bytes
        self._appends = appends
        self._context: list[str] = []  # the tokens before the pending ones
        self._before = ""  # their text
        self._pending: list[str] = []

    def push(self, token: str) -> str:
        self._pending.append(token)
        if not self._appends or (self._joins_bytes and is_fallback_token(token)):
            return ""
        return self._settle()

    def flush(self) -> str:
        text = self._settle() if self._pending else ""
        self._context, self._before = [], ""
        return text

    def _settle(self) -> str:
        """The text of the pending tokens, which then become the context of the next."""
        window = self._context + self._pending
        self._pending = []
        text = self._decode(window)
        added = text[len(self._before) :]
        if added or not self._before:
            self._context, self._before = self._shortest_context(window, text)
        return added

    def _shortest_context(self, window: list[str], text: str) -> tuple[list[str], str]:
        """The fewest last tokens of `window` that have text, and that text; else all of it.

        Without text they would not do: a decoder that drops the space at the beginning of a text
        would then drop the next token's.
        """
        for start in range(len(window) - 1, 0, -1):
            suffix = self._decode(window[start:])
            if suffix:
                return window[start:], suffix
        return window, text
