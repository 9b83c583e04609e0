"""A conversation with a model: turn after turn on one cache, thinking apart from answers.

    talk = sw.Conversation(sw.TextGenerator.load("runs/chat"))
    for spoken in talk.say("2+3?"):
        print(spoken.text, end="")

Every turn asks with the whole conversation, of which the engine finds in its cache what it has read
before; old thinking is left out.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from stepwell.generate.batch import feed, transcripts_of
from stepwell.generate.request import Completion, Request, TokenEvent
from stepwell.generate.text import TextGenerator
from stepwell.text.chat import Chat, Reply
from stepwell.text.messages import Message


@dataclass(frozen=True)
class Spoken:
    """Text that is final now, of the thinking or of the answer. The last carries the completion."""

    text: str
    thinking: bool = False
    completion: Completion | None = None


class Conversation:
    """Messages so far, and a model that answers the next.

    system: what is said before everything. thinking: whether the model is asked to think first,
    where its template asks at all. Raises TemplateError where the tokenizer has no chat template.
    """

    def __init__(
        self, generator: TextGenerator, *, system: str = "", thinking: bool = True
    ) -> None:
        self.generator, self.system, self.thinking = generator, system, thinking
        self.chat = Chat(generator.tokenizer)
        self.messages: list[Message] = []

    def restart(self) -> None:
        """Forget what was said."""
        self.messages = []

    def plain(self) -> dict[str, Any]:
        """The conversation as a row of a data set."""
        return {"messages": [_plain(message) for message in self._all()]}

    def say(self, text: str, **sampling: Any) -> Generator[Spoken, None, None]:
        """The reply as it comes; `sampling` are fields of SamplingParams.

        Question and reply are then a part of the conversation: where the loop is left early, as
        much of the reply as had come. Raises at once what the request may raise, such as a
        PromptError for a conversation that no longer fits the context, and then keeps nothing.
        """
        asked = [*self._all(), Message("user", text)]
        ids = self.chat.prompt(asked, thinking=self.thinking)
        params = self.generator.defaults.changed(n=1, **sampling)
        request = Request(tuple(ids), params)
        self.generator.engine.check(request)
        return self._reply(asked[-1], request)

    def _reply(self, asked: Message, request: Request) -> Generator[Spoken, None, None]:
        handle = self.generator.engine.submit(request)
        [transcript] = transcripts_of(
            handle, self.generator.tokenizer, "", stream=True, skip_special=False
        ).values()
        opened = self.chat.opens_thinking(request.prompt_ids)
        text, reply, ended = "", Reply("", "", answering=False), False
        try:
            for event in handle:
                if isinstance(event, TokenEvent) and event.token_id in self.chat.end_ids:
                    ended = True
                    handle.cancel()
                    continue
                text += feed(handle, transcript, event)
                before, reply = reply, self.chat.reply(text, opened=opened)
                yield from _new(before, reply)
            done = transcript.finished
            yield Spoken("", completion=replace(done, finish_reason="stop") if ended else done)
        finally:
            handle.cancel()
            if text or transcript.completion is not None:
                self.messages += [asked, Message("assistant", reply.answer, reply.think)]

    def _all(self) -> list[Message]:
        return [Message("system", self.system)] * bool(self.system) + self.messages


def _plain(message: Message) -> dict[str, str]:
    think = {"think": message.think} if message.think else {}
    return {"role": message.role, "content": message.content, **think}


def _new(before: Reply, now: Reply) -> Iterator[Spoken]:
    """What a reply says that it did not say before."""
    if len(now.think) > len(before.think):
        yield Spoken(now.think[len(before.think) :], thinking=True)
    if len(now.answer) > len(before.answer):
        yield Spoken(now.answer[len(before.answer) :])
