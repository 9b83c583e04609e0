"""The tokenizer: text to ids and back, and the roles of special tokens.

Wraps `tokenizers.Tokenizer`. Directories are read and written in `files`, new tokenizers are made
in `build`, and `coverage` finds the characters that a vocabulary lacks.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tokenizers
from tokenizers import models

from stepwell.config import fingerprint
from stepwell.errors import PromptError, TokenizerError
from stepwell.text.build import byte_core, character_core, trained_core
from stepwell.text.coverage import may_drop, missing, missing_error
from stepwell.text.files import TokenizerFiles, read_tokenizer, write_tokenizer
from stepwell.text.roles import checked_roles
from stepwell.text.spelling import decoder_steps, is_byte_level, is_fallback_token, token_bytes


class Tokenizer:
    """Text to ids and back. `roles` names the id of each special token that has been declared.

    Text that spells a special token is encoded as that token. Encoding never pads, truncates or
    draws at random, whatever the tokenizer's file says. `core` is taken over, not copied.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        roles: Mapping[str, str] = MappingProxyType({}),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`roles` leads from a role to its token, which the vocabulary must hold already.

        `settings` is what tokenizer_config.json says beyond special tokens: a chat template.
        """
        self.core = _deterministic(core)
        self.settings = settings
        self._tokens = checked_roles(roles)
        self.roles: Mapping[str, int] = MappingProxyType(
            {role: self.id_of(token) for role, token in self._tokens.items()}
        )
        added = core.get_added_tokens_decoder()
        core.add_special_tokens([t for t in self._tokens.values() if self.id_of(t) not in added])

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The tokenizer of a directory: tokenizer.json, or vocab.json with merges.txt.

        Raises TokenizerError, naming the file, where one is missing, malformed or does not fit.
        """
        files = read_tokenizer(Path(directory))
        return cls(files.core, files.roles, files.settings)

    @classmethod
    def character(cls, alphabet: Iterable[str], roles: Mapping[str, str] | None = None) -> Self:
        """A tokenizer with one token for each character of `alphabet`, whitespace included.

        A character outside the alphabet is a PromptError, or the unk token where that role is
        declared.
        """
        checked = checked_roles(roles or {})
        return cls(character_core(alphabet, checked), checked)

    @classmethod
    def byte(cls, roles: Mapping[str, str] | None = None) -> Self:
        """A tokenizer of the 256 bytes: the id of a byte is its value."""
        checked = checked_roles(roles or {})
        return cls(byte_core(checked), checked)

    @classmethod
    def train_bpe(
        cls, texts: Iterable[str], vocab_size: int, roles: Mapping[str, str] | None = None
    ) -> Self:
        """A byte-level BPE trained on `texts`; the same texts always give the same tokenizer.

        `vocab_size` counts the tokens of the roles; there are fewer where the texts hold too few
        pairs to merge.
        """
        checked = checked_roles(roles or {})
        return cls(trained_core(texts, vocab_size, checked), checked)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers loads."""
        write_tokenizer(Path(directory), TokenizerFiles(self.core, self._tokens, self.settings))

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self.core.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the canonical tokenizer.json."""
        return fingerprint(json.loads(self.core.to_str()))

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that decoding leaves out unless told otherwise."""
        added = self.core.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @functools.cached_property
    def is_byte_level(self) -> bool:
        """Whether decoding is the bytes of all tokens, joined and read as UTF-8."""
        return is_byte_level(decoder_steps(self.core))

    def role(self, name: str) -> int | None:
        """The id of the token with this role, None where none is declared."""
        checked_roles({name: name})
        return self.roles.get(name)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, None where none is declared."""
        return self.roles.get("bos")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, None where none is declared."""
        return self.roles.get("eos")

    @property
    def pad_id(self) -> int | None:
        """The id that fills up rows, None where none is declared."""
        return self.roles.get("pad")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`; `special` adds what the tokenizer's file puts around a text.

        Raises PromptError, with the position, where the vocabulary cannot spell a character.
        """
        return self._encoding(text, special).ids

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """What `encode` gives for each text, in parallel; a PromptError names the text at fault."""
        if self._may_drop:
            self._refuse_missing(texts)
        try:
            encodings = self.core.encode_batch_fast(texts, add_special_tokens=special)
        except Exception:  # the library raises nothing narrower
            self._refuse_missing(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `text` and the range of its characters, start and end, that each covers.

        Tokens that split one character all cover it. Raises PromptError as `encode` does.
        """
        encoding = self._encoding(text, special=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD.

        An id beyond the vocabulary, as a model with a padded one can produce, adds nothing.
        """
        try:
            return self.core.decode(ids, skip_special_tokens=skip_special)
        except OverflowError:
            odd = next(token_id for token_id in ids if not 0 <= token_id < 2**32)
            raise TokenizerError(f"{odd} is no token id.") from None

    def piece(self, token_id: int) -> str | None:
        """One token as the vocabulary spells it, None where the id has no token."""
        try:
            return self.core.id_to_token(token_id)
        except OverflowError:
            raise TokenizerError(f"{token_id} is no token id.") from None

    @functools.cached_property
    def byte_lengths(self) -> tuple[int, ...]:
        """How many UTF-8 bytes each id stands for inside a text; 0 for special tokens."""
        return tuple(self._byte_length(token_id) for token_id in range(self.vocab_size))

    def _byte_length(self, token_id: int) -> int:
        token = self.piece(token_id)
        if token is None or token_id in self.special_ids:
            return 0
        if is_fallback_token(token):
            return 1
        text = token_bytes(token) if self.is_byte_level else self.token(token_id).encode()
        return len(text)

    def token(self, token_id: int) -> str:
        """One token as it reads inside a text: a space for Ġ, an escape for part of a character."""
        token = self.piece(token_id)
        if token is None:
            return ""
        if token_id in self.special_ids or is_fallback_token(token):
            return token
        if self.is_byte_level:
            return token_bytes(token).decode(errors="backslashreplace")
        # The first token of a text may lose its space: what the second one adds reads as inside.
        return self.decode([token_id, token_id])[len(self.decode([token_id])) :]

    def id_of(self, token: str) -> int:
        """The id of a token, spelled as the vocabulary spells it. Raises TokenizerError."""
        token_id = self.core.token_to_id(token)
        if token_id is None:
            raise TokenizerError(f"The vocabulary has no token {token!r}.", fix=self._hint(token))
        return token_id

    def _hint(self, text: str) -> str:
        """What to do where a vocabulary has no token spelled like `text`."""
        try:
            ids = self.encode(text)
        except PromptError:
            ids = []
        near = self.piece(ids[0]) if len(ids) == 1 else None
        if near is None or near == self._tokens.get("unk"):
            return "declare it when the tokenizer is made, or take the tokenizer of the same model."
        return f"the vocabulary spells it {near!r}."

    def _encoding(self, text: str, special: bool) -> tokenizers.Encoding:
        if self._may_drop:
            self._refuse_missing([text])
        try:
            return self.core.encode(text, add_special_tokens=special)
        except Exception:  # the library raises nothing narrower
            self._refuse_missing([text])
            raise

    @functools.cached_property
    def _may_drop(self) -> bool:
        return may_drop(self.core)

    def _refuse_missing(self, texts: Sequence[str]) -> None:
        """Raise PromptError for the first text that the vocabulary cannot spell, if any."""
        for number, text in enumerate(texts):
            where = f"Text {number} of {len(texts)}: " if len(texts) > 1 else ""
            _refuse_surrogates(text, where)
            lost = missing(self.core, text)
            if lost is not None:
                raise missing_error(self.core, lost, where)


def _refuse_surrogates(text: str, where: str) -> None:
    try:
        str.encode(text)
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{where}half a surrogate pair, {text[error.start]!r}, at position {error.start}.",
            fix="read the text as UTF-8.",
        ) from None


def _deterministic(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """`core` without the padding, truncation and dropout that its file may have asked for."""
    core.no_padding()
    core.no_truncation()
    if isinstance(core.model, models.BPE):
        core.model.dropout = None
    return core
