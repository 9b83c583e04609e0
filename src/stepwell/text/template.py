"""Chat templates: Jinja programs that turn messages into text, and places in that text.

The language is that of transformers' apply_chat_template, so that the templates of real tokenizers
work unchanged. Where they run is the business of `sandbox`.

What people write may spell a special token. A template cannot tell; so each such spelling is cut by
a mark before rendering, and the places of the marks are told afterwards.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import jinja2

from stepwell.errors import PromptError, TemplateError
from stepwell.text.messages import Message
from stepwell.text.sandbox import Sandbox

PRIVATE: Final = range(0xE000, 0xF8FF)  # characters that no standard gives a meaning


class Rendered(NamedTuple):
    """Text, and places in it.

    cuts: where no token may cross, so that what people wrote becomes no special token. ends: where
    the content of each assistant's message ends that is in the text. thinks: whether the thinking
    of the last of them is.
    """

    text: str
    cuts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    thinks: bool = False


class ChatTemplate:
    """A template and the special tokens around it.

    tokens: what it knows by name, such as eos_token. special: spellings of all special tokens.
    Raises TemplateError where the source is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], special: Iterable[str] = ()) -> None:
        self.source = source
        self._check_syntax()
        self._tokens = dict(tokens)
        self._special = sorted(set(special), key=len, reverse=True)

    def render(
        self, messages: Sequence[Message], *, reply: bool = False, thinking: bool = True
    ) -> Rendered:
        """The text of a conversation.

        reply: up to where the assistant is to speak. thinking: whether it is to think first, for
        templates that ask. Raises TemplateError where the template refuses the messages or fails,
        and PromptError for a message that spells a special token of a single character.
        """
        cut, end, thought = marks = self._marks(messages)
        plain = [self._marked(message, cut, end, thought) for message in messages]
        marked = self._run(plain, add_generation_prompt=reply, enable_thinking=thinking)
        text, places = _unmarked(marked, marks)
        return Rendered(text, tuple(places[0]), tuple(places[1]), thinks=bool(places[2]))

    def literal(self, text: str) -> Rendered:
        """A text as it is, with cuts where it spells special tokens. Raises PromptError."""
        cut, _, _ = marks = self._marks([Message("user", text)])
        plain, places = _unmarked(self._guarded(text, cut), marks)
        return Rendered(plain, tuple(places[0]))

    def _marks(self, messages: Sequence[Message]) -> tuple[str, str, str]:
        """Three characters that occur nowhere else."""
        used = set(self.source).union(*(message.content + message.think for message in messages))
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        cut, end, thought = itertools.islice(free, 3)
        return cut, end, thought

    def _marked(self, message: Message, cut: str, end: str, thought: str) -> dict[str, str]:
        """A message as templates expect it. Marks stand within white space, which some strip."""
        content = self._guarded(message.content, cut)
        if message.role != "assistant":
            return {"role": message.role, "content": content}
        bare = content.rstrip()
        plain = {"role": "assistant", "content": bare + end + content[len(bare) :]}
        if message.think:
            plain["reasoning_content"] = self._guarded(message.think, cut).strip() + thought
        return plain

    def _guarded(self, text: str, cut: str) -> str:
        """The text with every spelling of a special token cut behind its first character."""
        for token in self._special:
            if token not in text:
                continue
            if len(token) == 1:
                raise PromptError(
                    f"A message holds {token!r}, which is a special token.", fix="leave it out."
                )
            text = text.replace(token, token[0] + cut + token[1:])
        return text

    def _run(self, messages: list[dict[str, str]], **settings: bool) -> str:
        try:
            return _sandbox().run(self.source, {"messages": messages, **self._tokens, **settings})
        except TemplateError:
            raise
        except Exception as error:  # a template can fail in as many ways as a program
            raise TemplateError(
                f"The chat template failed: {type(error).__name__}: {error}.",
                fix="check the roles and their order, or give another template.",
            ) from None

    def _check_syntax(self) -> None:
        try:
            _sandbox().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"Line {error.lineno} of the chat template is no Jinja: {error.message}.",
                fix="correct the template, or take that of the model's own tokenizer.",
            ) from None


def _unmarked(marked: str, marks: Sequence[str]) -> tuple[str, list[list[int]]]:
    """The text without its marks, and where each of them stood."""
    text = ""
    places: dict[str, list[int]] = {mark: [] for mark in marks}
    for piece in re.split(f"([{''.join(marks)}])", marked):
        if piece in places:
            places[piece].append(len(text))
        else:
            text += piece
    return text, list(places.values())


@functools.cache
def _sandbox() -> Sandbox:
    return Sandbox()
