"""The roles that special tokens can have. Which token has which role is the tokenizer's."""

from __future__ import annotations

from collections.abc import Mapping

from stepwell.errors import ConfigError, suggest

ROLES = (
    "bos",
    "eos",
    "pad",
    "unk",
    "question_end",
    "answer_end",
    "think_start",
    "think_end",
)


def checked_roles(roles: Mapping[str, str]) -> dict[str, str]:
    """A copy of `roles`, tokens by role. Raises ConfigError at an unknown role or empty token."""
    for role, token in roles.items():
        if role not in ROLES:
            raise ConfigError(f"There is no role {role!r}. {suggest(role, ROLES)}")
        if not token:
            raise ConfigError(f"The token of the role {role!r} is empty.")
    return dict(roles)
