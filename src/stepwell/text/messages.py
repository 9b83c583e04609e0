"""Conversations: messages with a role, read from the two forms in which data sets hold them.

    {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]}
    {"data": ["2+3?", "5", ...]}      question, answer, question, answer

What an assistant thought before it answered is a part of its own. It may also stand at the head of
the content between <think> and </think>; nobody else's text is looked into.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from stepwell.errors import DataError, suggest

Speaker = Literal["system", "user", "assistant", "tool"]
SPEAKERS: Final = get_args(Speaker)
THINK_START: Final = "<think>"
THINK_END: Final = "</think>"
THOUGHT_KEYS: Final = ("think", "reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Message:
    """What one speaker says. think: what an assistant thought before; it is no part of content."""

    role: Speaker
    content: str
    think: str = ""

    def answered(self) -> Message:
        """The message as later turns see it: without the thinking."""
        return Message(self.role, self.content)


def read_conversation(values: Any, *, where: str = "") -> list[Message]:
    """The messages of one row of a data set, in either form.

    Raises DataError, which begins with `where`, for a row of another form, an unknown role, content
    that is no text, and a conversation without an answer.
    """
    at = f"{where}: " if where else ""
    messages = _messages(values, at)
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            f"{at}the conversation has no message of an assistant, from which it could be learnt.",
            fix='give it one with "role": "assistant".',
        )
    return messages


def as_messages(values: Sequence[Message | Mapping[str, Any]], *, where: str = "") -> list[Message]:
    """Messages, some of them perhaps as plain values. Raises DataError."""
    at = f"{where}: " if where else ""
    return [
        value if isinstance(value, Message) else _message(value, f"{at}message {number}: ")
        for number, value in enumerate(values)
    ]


def split_thought(content: str) -> tuple[str, str]:
    """(think, answer) of an assistant's text that may begin with <think>...</think>."""
    head, closed, answer = content.partition(THINK_END)
    opened = head.lstrip().removeprefix(THINK_START)
    if not closed or opened == head.lstrip():
        return "", content
    return opened.strip(), answer.lstrip()


def _messages(values: Any, at: str) -> list[Message]:
    if not isinstance(values, Mapping):
        raise DataError(f"{at}expected an object, got {type(values).__name__}.", fix=_FORMS)
    if isinstance(rows := values.get("messages"), Sequence) and not isinstance(rows, str):
        return as_messages(rows, where=at.removesuffix(": "))
    if isinstance(texts := values.get("data"), Sequence) and not isinstance(texts, str):
        return _turns(texts, at)
    keys = ", ".join(map(repr, values)) or "none"
    raise DataError(f'{at}expected a list under "messages" or "data"; keys: {keys}.', fix=_FORMS)


_FORMS: Final = 'a row is {"messages": [{"role": ..., "content": ...}, ...]} or {"data": [q, a]}.'


def _turns(texts: Sequence[Any], at: str) -> list[Message]:
    """Questions and answers by turns."""
    odd = next((number for number, text in enumerate(texts) if not isinstance(text, str)), None)
    if odd is not None:
        kind = type(texts[odd]).__name__
        raise DataError(f'{at}entry {odd} of "data" is {kind}, expected text.', fix=_FORMS)
    if not texts or len(texts) % 2:
        raise DataError(
            f'{at}"data" has {len(texts)} entries, expected question and answer by turns.',
            fix="give every question its answer.",
        )
    return [
        _said("assistant" if number % 2 else "user", text, "") for number, text in enumerate(texts)
    ]


def _message(value: Any, at: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{at}expected an object, got {type(value).__name__}.", fix=_FORMS)
    role, content = value.get("role"), value.get("content")
    if role not in SPEAKERS:
        raise DataError(f"{at}there is no role {role!r}. {suggest(str(role), SPEAKERS)}")
    if not isinstance(content, str):
        kind = "missing" if content is None else type(content).__name__
        raise DataError(f"{at}the content is {kind}, expected text.", fix=_FORMS)
    thought = next((value[key] for key in THOUGHT_KEYS if value.get(key)), "")
    if not isinstance(thought, str):
        raise DataError(f"{at}the thinking is {type(thought).__name__}, expected text.", fix=_FORMS)
    return _said(cast(Speaker, role), content, thought)


def _said(role: Speaker, content: str, think: str) -> Message:
    if role == "assistant" and not think:
        think, content = split_thought(content)
    return Message(role, content, think)
