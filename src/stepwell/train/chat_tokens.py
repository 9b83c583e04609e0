"""The tokens and the template that a base lacks for conversations.

Owns which are added, and where a tokenizer with them lies: in the user's cache, under its content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import tokenizers

from stepwell.config import fingerprint
from stepwell.errors import TemplateError
from stepwell.storage.user_cache import cache_folder
from stepwell.tasks.chats import ROLES
from stepwell.text.chat import template_of
from stepwell.text.tokenizer import Tokenizer

LAST_WRITTEN: Final = "tokenizer_config.json"


def tokenizer_for_chats(base: Path) -> Path:
    """The directory of a tokenizer that knows how to chat: the base's own, where it does.

    Else one in the cache that has the base's tokens, and those of missing roles after them.
    """
    own = Tokenizer.load(base)
    if can_chat(own):
        return base
    made = with_chat_tokens(own)
    content = [made.fingerprint, dict(made.roles), dict(made.settings)]
    directory = cache_folder("tokenizers") / fingerprint(content)[:16]
    if not (directory / LAST_WRITTEN).exists():
        made.save(directory)
    return directory


def can_chat(tokenizer: Tokenizer) -> bool:
    """Whether it has a chat template, or tokens that end a question and an answer."""
    try:
        template_of(tokenizer)
    except TemplateError:
        return False
    return True


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the same ids, a token for each role of a chat, and the template of these.

    Roles that the tokenizer has keep their tokens. A token that it spells already is that token.
    """
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    own = {role: tokenizer.piece(index) for role, index in tokenizer.roles.items()}
    roles = {**ROLES, **{role: token for role, token in own.items() if token is not None}}
    core.add_special_tokens([token for token in roles.values() if core.token_to_id(token) is None])
    made = Tokenizer(core, roles, tokenizer.settings)
    return Tokenizer(core, roles, {**tokenizer.settings, "chat_template": template_of(made)})
