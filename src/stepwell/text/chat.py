"""Chat: conversations as the token ids that a model is asked with, and learns from.

    asked     all messages, and what the template puts before a reply
    learnt    the same, then the reply: thinking, answer and the token that ends it

The reply is everything behind what the model is asked with, so that it is trained on exactly what
it has to say itself. Which tokens these are is known while rendering and never searched for.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stepwell.errors import DataError, TemplateError
from stepwell.text.messages import THINK_END, THINK_START, Message, as_messages
from stepwell.text.template import ChatTemplate, Rendered
from stepwell.text.tokenizer import Tokenizer

OPENING: Final = 16  # tokens at the end of a prompt among which the thinking may be begun
NAMED: Final = ("bos", "eos", "pad", "unk")  # roles that templates know, as bos_token and so on

BY_ROLES: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
{%- if message.reasoning_content -%}
{{- THINK_START + message.reasoning_content + THINK_END -}}
{%- endif -%}
{{- message.content + ANSWER_END -}}
{%- elif message.role == "user" -%}
{{- message.content + QUESTION_END -}}
{%- else -%}
{{- message.content + "\\n\\n" -}}
{%- endif -%}
{%- endfor -%}
"""
"""The template of a tokenizer that declares where questions and answers end, and has no other."""


class Lesson(NamedTuple):
    """Token ids, and which of them are learnt; the text, and where replies begin and end in it."""

    ids: list[int]
    learnt: list[bool]
    text: str
    replies: tuple[tuple[int, int], ...]


class Reply(NamedTuple):
    """What a model said: its thinking, its answer, and whether it has come to an answer yet."""

    think: str
    answer: str
    answering: bool


class _Turn(NamedTuple):
    """The text that a reply is asked with and the text with the reply, and where not to cross."""

    asked: Rendered
    whole: Rendered


class Chat:
    """The chat format of a tokenizer: its own template, or the one that its roles make.

    Raises TemplateError where it has neither, or its template is broken.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.core.get_added_tokens_decoder()
        special = [token.content for token in added.values() if token.special]
        names = {f"{role}_token": _spelling(tokenizer, role) for role in NAMED}
        self.template = ChatTemplate(
            template or template_of(tokenizer),
            {name: token for name, token in names.items() if token is not None},
            {token.content for token in added.values()},
        )
        self._think_start = _spelling(tokenizer, "think_start") or THINK_START
        self._think_end = _spelling(tokenizer, "think_end") or THINK_END
        endings = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self._ending = re.compile(rf"\s*(?:{endings})" if endings else r"(?!)")

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a reply: the template's own, and those with such a role."""
        ids = {self.tokenizer.role("answer_end"), self.tokenizer.eos_id}
        try:
            full = self.template.render([Message("user", "a"), Message("assistant", "b")])
        except TemplateError:  # it takes no such conversation
            full = Rendered("")
        if full.ends:
            token = full.text[full.ends[-1] : self._end_of_reply(full)].strip()
            ids.add(self.tokenizer.core.token_to_id(token))
        return frozenset(token_id for token_id in ids if token_id is not None)

    @property
    def end_of_answer(self) -> str:
        """The token that ends an answer where a role says so, else the one that ends a text."""
        return _spelling(self.tokenizer, "answer_end") or _spelling(self.tokenizer, "eos") or ""

    # -- asked ---------------------------------------------------------------------------------

    def prompt(
        self, messages: Sequence[Message | Mapping[str, Any]], *, thinking: bool = True
    ) -> list[int]:
        """The ids with which a model is asked for the next reply; old thinking is left out.

        Raises DataError for messages of another form, TemplateError and PromptError.
        """
        history = [message.answered() for message in as_messages(messages)]
        asked = self.template.render(history, reply=True, thinking=thinking)
        return self._ids(asked)

    def opens_thinking(self, asked_ids: Sequence[int]) -> bool:
        """Whether what a model is asked with has begun its thinking."""
        last = self.tokenizer.decode(asked_ids[-OPENING:], skip_special=False)
        return last.rstrip().endswith(self._think_start)

    def reply(self, text: str, *, opened: bool = False) -> Reply:
        """What a model's text says, special tokens spelled out; it may still be growing.

        opened: whether the prompt has begun the thinking.
        """
        body = text.lstrip() if not opened else text
        inside = opened or body.startswith(self._think_start)
        if not inside:
            waiting = self._think_start.startswith(body)
            return Reply("", "" if waiting else text, answering=not waiting)
        think, closed, answer = body.removeprefix(self._think_start).partition(self._think_end)
        if not closed:  # the end of the thinking may have begun
            held = range(min(len(think), len(self._think_end)), 0, -1)
            size = next((n for n in held if self._think_end.startswith(think[-n:])), 0)
            think = think[: len(think) - size]
        return Reply(think.strip(), answer.lstrip(), answering=bool(closed))

    # -- learnt --------------------------------------------------------------------------------

    def lessons(self, messages: Sequence[Message | Mapping[str, Any]]) -> list[Lesson]:
        """What is learnt from a conversation: every reply, each once, behind what it is asked with.

        Replies share a lesson where the next is asked with all tokens of the one before; one with
        thinking does not, since later turns no longer see it. Raises DataError where there is no
        reply, and what `prompt` raises.
        """
        conversation = as_messages(messages)
        lessons: list[Lesson] = []
        for place, message in enumerate(conversation):
            if message.role != "assistant":
                continue
            history = [earlier.answered() for earlier in conversation[:place]]
            lesson = self._lesson(self._turn(history, message))
            if lessons and lesson.ids[: len(lessons[-1].ids)] == lessons[-1].ids:
                before = lessons.pop()
                learnt = [*before.learnt, *lesson.learnt[len(before.learnt) :]]
                replies = (*before.replies, *lesson.replies)
                lesson = lesson._replace(learnt=learnt, replies=replies)
            lessons.append(lesson)
        if not lessons:
            raise DataError("The conversation has no reply of an assistant to learn from.")
        return lessons

    def _turn(self, history: Sequence[Message], message: Message) -> _Turn:
        """The text of one reply behind what it is asked with."""
        thinking = bool(message.think)
        asked = self.template.render(history, reply=True, thinking=thinking)
        full = self.template.render([*history, message], thinking=thinking)
        if not full.ends:
            raise TemplateError("The chat template leaves out what the assistant says.")
        end = self._end_of_reply(full)
        if full.text.startswith(asked.text) and full.thinks == thinking:
            turn = _Turn(asked, full._replace(text=full.text[:end]))
        else:
            turn = self._composed(asked, message, full.text[full.ends[-1] : end])
        return turn if end > full.ends[-1] else self._closed(turn)

    def _composed(self, asked: Rendered, message: Message, ending: str) -> _Turn:
        """A reply put together here, where the template shows it otherwise than it is said.

        Some templates leave all thinking out, or open it for every reply. A thinking that is
        opened and has nothing in it is closed before the reply, and not learnt.
        """
        begun = asked.text.rstrip().endswith(self._think_start)
        opening = "" if begun else f"{self._think_start}\n"
        closing = f"\n{self._think_end}\n\n"
        said = Rendered("")
        if message.think:
            said = _joined(opening, self.template.literal(message.think.strip()), closing)
        if begun and not message.think:
            asked = asked._replace(text=asked.text + closing)
        answer = self.template.literal(message.content.strip())
        return _Turn(asked, _joined(asked, said, answer, ending))

    def _end_of_reply(self, full: Rendered) -> int:
        """Behind the special token that follows the last reply; where there is none, behind it."""
        found = self._ending.match(full.text, full.ends[-1])
        return found.end() if found else full.ends[-1]

    def _closed(self, turn: _Turn) -> _Turn:
        """A turn to which the template has put no end, with an end-of-sequence token."""
        eos = _spelling(self.tokenizer, "eos")
        if eos is None:
            raise TemplateError(
                "The chat template ends a reply with no special token, and the tokenizer has none"
                " that ends a text: a model could not learn to stop.",
                fix="declare the role answer_end or eos, or give another template.",
            )
        return _Turn(turn.asked, turn.whole._replace(text=turn.whole.text + eos))

    def _lesson(self, turn: _Turn) -> Lesson:
        """The tokens of a turn, which begin with those that the reply is asked with."""
        start, end = len(turn.asked.text), len(turn.whole.text)
        asked, ids = self._ids(turn.asked), self._ids(turn.whole)
        if ids[: len(asked)] != asked:  # a token would lie across, which a model never sees so
            cuts = (cut - start for cut in turn.whole.cuts if start < cut)
            ids = asked + self._ids(Rendered(turn.whole.text[start:], tuple(cuts)))
        learnt = [place >= len(asked) for place in range(len(ids))]
        return Lesson(ids, learnt, turn.whole.text, ((start, end),))

    def _ids(self, rendered: Rendered) -> list[int]:
        """The tokens of a text, in the pieces between its cuts."""
        text = rendered.text
        edges = sorted({0, len(text), *(cut for cut in rendered.cuts if cut < len(text))})
        pieces = [text[begin:end] for begin, end in itertools.pairwise(edges)]
        return [token for ids in self.tokenizer.encode_batch(pieces) for token in ids]


def template_of(tokenizer: Tokenizer) -> str:
    """The source of a tokenizer's chat template. Raises TemplateError where it has none."""
    stored = tokenizer.settings.get("chat_template")
    if isinstance(stored, Sequence) and not isinstance(stored, str):  # several, by name
        named = {each.get("name"): each.get("template") for each in stored}
        stored = named.get("default")
    if isinstance(stored, str):
        return stored
    if {"question_end", "answer_end"} <= tokenizer.roles.keys():
        source = BY_ROLES
        for role in ("think_start", "think_end", "question_end", "answer_end"):
            token = _spelling(tokenizer, role) or {"think_start": THINK_START}.get(role, THINK_END)
            source = source.replace(role.upper(), json.dumps(token))
        return source
    raise TemplateError(
        "The tokenizer has no chat template, and no tokens that end a question and an answer.",
        fix="give a template, or train on conversations: `stepwell train --task chats`.",
    )


def _joined(*parts: Rendered | str) -> Rendered:
    """Texts one after the other with their cuts."""
    text, cuts = "", []
    for part in parts:
        piece = part if isinstance(part, Rendered) else Rendered(part)
        cuts += [len(text) + cut for cut in piece.cuts]
        text += piece.text
    return Rendered(text, tuple(cuts))


def _spelling(tokenizer: Tokenizer, role: str) -> str | None:
    token_id = tokenizer.role(role)
    return None if token_id is None else tokenizer.piece(token_id)
