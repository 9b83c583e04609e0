"""The tokens and the template that a tokenizer lacks for conversations."""

from __future__ import annotations

from typing import Final

import tokenizers

from stepwell.errors import TemplateError
from stepwell.text.chat import template_of
from stepwell.text.tokenizer import Tokenizer

CHAT_TOKENS: Final = {
    "eos": "<|end|>",
    "question_end": "<|reply|>",
    "answer_end": "<|end|>",
    "think_start": "<think>",
    "think_end": "</think>",
}
"""Special tokens of conversations, where a tokenizer has no others for these roles."""


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself where it knows how to chat, else one with the same ids and more.

    That has a token for each role of a chat behind them, and the template of these. Roles that the
    tokenizer has keep their tokens; a token that it spells already is that token.
    """
    if can_chat(tokenizer):
        return tokenizer
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    own = {role: tokenizer.piece(index) for role, index in tokenizer.roles.items()}
    roles = {**CHAT_TOKENS, **{role: token for role, token in own.items() if token is not None}}
    core.add_special_tokens([token for token in roles.values() if core.token_to_id(token) is None])
    made = Tokenizer(core, roles, tokenizer.settings)
    return Tokenizer(core, roles, {**tokenizer.settings, "chat_template": template_of(made)})


def can_chat(tokenizer: Tokenizer) -> bool:
    """Whether it has a chat template, or tokens that end a question and an answer."""
    try:
        template_of(tokenizer)
    except TemplateError:
        return False
    return True
