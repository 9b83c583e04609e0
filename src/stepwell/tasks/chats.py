"""Conversations from the user's files, of which every reply is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pydantic

from stepwell.errors import DataError
from stepwell.tasks.example import IGNORE, Encoded, Example, Target
from stepwell.tasks.lines import LinesTask
from stepwell.tasks.rows import Row
from stepwell.text.messages import Message, read_conversation
from stepwell.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # it needs Jinja, which the other tasks can do without
    from stepwell.text.chat import Chat, Lesson


class Chats(LinesTask):
    """The conversations of a file: {"messages": [...]} or {"data": [question, answer, ...]} a row.

    Learnt is what the assistant says, with its thinking and the token that ends it; the rest is
    read only. A conversation whose replies think is several examples, since no later turn sees old
    thinking. All examples of conversations that begin alike are in one split.
    """

    ends: ClassVar[bool] = False  # the chat template puts the end

    tokenizer_from: Path | None = pydantic.Field(
        default=None, description="a model directory whose tokenizer and chat template are taken"
    )
    max_tokens: int = pydantic.Field(
        default=0, ge=0, description="longer examples are left out; 0 takes all"
    )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of `tokenizer_from`, with tokens for conversations where it has none; or its own."""
        from stepwell.text.chat_tokens import with_chat_tokens

        if self.tokenizer_from is not None:
            return with_chat_tokens(Tokenizer.load(self.tokenizer_from))
        return with_chat_tokens(self.made_tokenizer({}))

    @cached_property
    def chat(self) -> Chat:
        """The chat format of the tokenizer."""
        from stepwell.text.chat import Chat

        return Chat(self.tokenizer)

    def conversation(self, row: Row) -> list[Message]:
        """What is said in a row. Raises DataError that names it."""
        return read_conversation(row.value, where=row.where)

    @cached_property
    def conversations(self) -> list[list[Message]]:
        """The conversations of all rows. Raises DataError that names the line."""
        return [self.conversation(row) for row in self.rows]

    @property
    def end_ids(self) -> frozenset[int]:
        """Those of the chat format too."""
        return super().end_ids | self.chat.end_ids

    @property
    def examples(self) -> list[Example]:
        """What is learnt, conversation by conversation."""
        return self._learnt.examples

    def contents(self) -> list[str]:
        """What is said in each conversation up to the first reply."""
        return [_opening(conversation) for conversation in self.conversations]

    def row_of(self, number: int) -> int:
        """The row whose conversation the example is from."""
        return self._learnt.rows[number]

    @property
    def num_left_out(self) -> int:
        """How many examples are longer than `max_tokens`."""
        return self._learnt.num_left_out

    @property
    def context_length(self) -> int:
        """The longest that a reply is asked with, and the longest reply."""
        lessons = self._learnt.lessons.values()
        asked = max(len(lesson.ids) - _last_reply(lesson) for lesson in lessons)
        return asked + self.max_answer_tokens

    @property
    def max_answer_tokens(self) -> int:
        """The most tokens that are learnt of an example."""
        return max(sum(lesson.learnt) for lesson in self._learnt.lessons.values())

    def encode(self, example: Example) -> Encoded:
        """The tokens of an example of this file, labelled where the next one is learnt."""
        lesson = self._learnt.lessons[example.text]
        follow = zip(lesson.ids[1:], lesson.learnt[1:], strict=True)
        labels = [token if learnt else IGNORE for token, learnt in follow]
        return Encoded(lesson.ids[:-1], labels, [0] * len(labels))

    def grade(self, example: Example, answer_text: str) -> bool:
        """Whether the answer is the expected one, whatever was thought before."""
        return self.final(answer_text) == self.final(example.answer)

    def final(self, text: str) -> str:
        """The answer in what a model says: without thinking, end and white space around it."""
        text = text.strip().removesuffix(self.chat.end_of_answer)
        return self.chat.reply(text).answer.strip()

    def texts(self) -> Sequence[str]:
        """All that anybody says, and the line breaks between."""
        return ["\n", *_said(self.conversations)]

    def taught(self) -> Sequence[str]:
        """What is said in the conversations of the train split."""
        homes = zip(self.conversations, self.splits, strict=True)
        return _said([conversation for conversation, split in homes if split == "train"])

    def identity(self) -> dict[str, Any]:
        """The plain values; the tokenizer counts by itself, wherever it is from."""
        plain = super().identity()
        return {key: value for key, value in plain.items() if key != "tokenizer_from"}

    @cached_property
    def _learnt(self) -> _Learnt:
        learnt = _Learnt([], [], {})
        left_out = 0
        for row, conversation in enumerate(self.conversations):
            for lesson in self.chat.lessons(conversation):
                if 0 < self.max_tokens < len(lesson.ids):
                    left_out += 1
                    continue
                learnt.examples.append(_example(lesson))
                learnt.rows.append(row)
                learnt.lessons[lesson.text] = lesson
        if not learnt.examples:
            raise DataError(
                f"{self.path}: all {left_out} examples have more than"
                f" max_tokens={self.max_tokens}.",
                fix="raise max_tokens.",
            )
        return learnt._replace(num_left_out=left_out)


class _Learnt(NamedTuple):
    """All examples, the row of each, and its tokens by its text."""

    examples: list[Example]
    rows: list[int]
    lessons: dict[str, Lesson]
    num_left_out: int = 0


def _example(lesson: Lesson) -> Example:
    targets = (Target(begin, lesson.text[begin:end]) for begin, end in lesson.replies)
    return Example(lesson.text, tuple(targets), ids=tuple(lesson.ids))


def _last_reply(lesson: Lesson) -> int:
    """The number of tokens that are learnt at the end."""
    return next(place for place, learnt in enumerate(reversed(lesson.learnt)) if not learnt)


def _opening(conversation: Sequence[Message]) -> str:
    """What is said up to the first reply."""
    first = next(place for place, each in enumerate(conversation) if each.role == "assistant")
    return "\n".join(message.content for message in conversation[:first])


def _said(conversations: Sequence[Sequence[Message]]) -> list[str]:
    return [
        text
        for conversation in conversations
        for message in conversation
        for text in (message.content, message.think)
        if text
    ]
