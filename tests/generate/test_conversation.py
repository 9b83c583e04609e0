"""A conversation: replies in their parts, on one cache, and kept as far as they came."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chats import QUESTIONS

import stepwell as sw
from stepwell.errors import PromptError, TemplateError
from stepwell.generate.conversation import Conversation
from stepwell.text import Tokenizer
from stepwell.text.messages import Message, read_conversation


@pytest.fixture
def talk(chat_run: Path) -> Conversation:
    return Conversation(sw.TextGenerator.load(chat_run))


def said(talk: Conversation, text: str, **sampling: object) -> tuple[str, str]:
    """(thinking, answer) of a reply, put together from what came."""
    parts = {True: "", False: ""}
    for spoken in talk.say(text, temperature=0, **sampling):
        parts[spoken.thinking] += spoken.text
    return parts[True], parts[False]


def test_thinking_and_answer_come_apart_and_are_kept(talk: Conversation) -> None:
    assert said(talk, "3?") == ("3 times 7", "21")
    assert talk.messages == [Message("user", "3?"), Message("assistant", "21", "3 times 7")]
    last = list(talk.say("4?", temperature=0))[-1]
    assert last.completion is not None
    assert last.completion.finish_reason == "stop"
    assert read_conversation(talk.plain()) == talk.messages


def test_a_turn_finds_the_one_before_it_in_the_cache(talk: Conversation) -> None:
    long = "3?" * 40
    talk.messages = [Message("user", long), Message("assistant", "21")]
    list(talk.say("3?", max_new_tokens=4))
    last = list(talk.say("4?", max_new_tokens=4))[-1]
    assert last.completion is not None
    assert last.completion.usage.cached_tokens == 64


def test_every_reply_equals_that_of_a_new_conversation_with_the_same_messages(chat_run) -> None:
    generator = sw.TextGenerator.load(chat_run, strict=True)
    one, other = Conversation(generator), Conversation(sw.TextGenerator.load(chat_run, strict=True))
    for question in QUESTIONS[:4]:
        other.messages = list(one.messages)
        other.generator = sw.TextGenerator.load(chat_run, strict=True)
        assert said(one, question) == said(other, question)


def test_a_reply_that_is_left_is_kept_as_far_as_it_came(talk: Conversation) -> None:
    spoken = talk.say("3?", temperature=0)
    next(spoken)
    spoken.close()
    [asked, reply] = talk.messages
    assert asked.content == "3?"
    assert "3 times 7".startswith(reply.think)
    assert reply.content == ""
    assert talk.generator.engine.num_free_rows == talk.generator.engine.max_rows


def test_a_reply_of_nothing_is_a_reply_too(talk: Conversation) -> None:
    said(talk, "3?")
    end = talk.generator.tokenizer.id_of("<|end|>")
    [spoken] = talk.say("4?", forced_tokens=(end,))
    assert spoken.completion is not None
    assert talk.messages[2:] == [Message("user", "4?"), Message("assistant", "")]


def test_what_does_not_fit_is_refused_and_nothing_is_kept(talk: Conversation) -> None:
    with pytest.raises(PromptError, match="context"):
        talk.say("3?" * 500)
    assert talk.messages == []


def test_a_system_message_goes_before_everything_and_survives_a_restart(chat_run) -> None:
    talk = Conversation(sw.TextGenerator.load(chat_run), system="times")
    said(talk, "3?")
    talk.restart()
    assert talk.messages == []
    assert talk.plain() == {"messages": [{"role": "system", "content": "times"}]}


def test_the_end_that_a_template_puts_ends_a_reply_though_no_configuration_names_it(
    chat_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a base model that has learnt to chat: its configuration knows another end."""
    generator = sw.TextGenerator.load(chat_run)
    tokenizer = generator.tokenizer
    roles = {"question_end": "<|reply|>", "think_start": "<think>", "think_end": "</think>"}
    generator.tokenizer = Tokenizer(tokenizer.core, roles, tokenizer.settings)
    monkeypatch.setattr(generator.engine, "eos_ids", frozenset())
    talk = Conversation(generator)
    assert talk.chat.end_ids == {tokenizer.id_of("<|end|>")}
    last = list(talk.say("3?", temperature=0))[-1]
    assert last.completion is not None
    assert last.completion.finish_reason == "stop"
    assert talk.messages[-1] == Message("assistant", "21", "3 times 7")


def test_a_tokenizer_without_a_template_is_an_error() -> None:
    model = sw.Transformer(sw.ModelConfig(vocab_size=256))
    model.initialize(0)
    with pytest.raises(TemplateError, match="no chat template"):
        Conversation(sw.TextGenerator(model, Tokenizer.byte()))
