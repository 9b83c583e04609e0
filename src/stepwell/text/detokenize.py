"""Text of tokens that arrive one by one, each piece of it final.

Owns when text is final, and what text ids add to a text that they go on from. What ids decode to is
the tokenizer's: the pieces put together are exactly `Tokenizer.decode` of all ids. Work per token
does not grow with what came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence, Set
from typing import Any, Protocol

from stepwell.text.spelling import decoder_steps, is_fallback_token, token_bytes
from stepwell.text.tokenizer import Tokenizer

# Steps that look at single tokens, or runs of byte tokens, and at most at whether one is the first.
_TOKENWISE = {"Replace", "ByteFallback", "Strip", "Metaspace", "WordPiece"}


def continuation(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add to that of the ids before them, special tokens left out.

    So a space that a decoder drops at the beginning of a text is kept. Where the text before would
    change (bytes that break a character of it), what `ids` decode to by themselves.
    """
    context = _context(tokenizer, before, tokenizer.special_ids)
    given, whole = tokenizer.decode(context), tokenizer.decode([*context, *ids])
    return whole[len(given) :] if whole.startswith(given) else tokenizer.decode(ids)


def _context(tokenizer: Tokenizer, ids: Sequence[int], skipped: Set[int]) -> list[int]:
    """The fewest last ids that have text, a run of byte tokens whole; none where none matter."""
    if tokenizer.is_byte_level:
        return []
    context: list[int] = []
    for token_id in reversed(ids):
        token = tokenizer.piece(token_id)
        if token is None or token_id in skipped:
            continue
        context.insert(0, token_id)
        if not is_fallback_token(token) and tokenizer.decode(context, skip_special=False):
            break
    return context


class IncrementalDecoder:
    """The text of one sequence of ids, as `push` and finally `flush` return it in pieces.

    Text comes as soon as no later token can change it. With bytes that are no UTF-8 it holds
    U+FFFD just where `Tokenizer.decode` has it. `after` are ids that the sequence goes on from: its
    text is then their `continuation`.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, after: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        context = _context(tokenizer, after, self._skipped)
        tokens = [token for token in map(tokenizer.piece, context) if token is not None]
        self._stream = _stream(tokenizer, tokens)

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


def _stream(tokenizer: Tokenizer, context: list[str]) -> _Stream:
    """What decodes the tokens that follow `context`."""
    if tokenizer.is_byte_level:
        return _ByteStream()
    core = tokenizer.core
    steps = decoder_steps(core)
    return _WindowStream(
        " ".join if core.decoder is None else core.decoder.decode,
        joins_bytes=any(step["type"] == "ByteFallback" for step in steps),
        appends=_appends(steps),
        context=context,
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
        self,
        decode: Callable[[list[str]], str],
        *,
        joins_bytes: bool,
        appends: bool,
        context: list[str],
    ) -> None:
        self._decode = decode
        self._joins_bytes = joins_bytes
        self._appends = appends
        self._context = context  # the tokens before the pending ones
        self._before = decode(context)  # their text
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
        pending, self._pending = self._pending, []
        window = self._context + pending
        text = self._decode(window)
        goes_on = text.startswith(self._before)
        added = text[len(self._before) :] if goes_on else self._decode(pending)
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
