"""Conversations as data sets hold them, and rows that hold none."""

from __future__ import annotations

import pytest

from stepwell.errors import DataError
from stepwell.text.messages import Message, read_conversation, split_thought

ASKED, SAID = Message("user", "2+3?"), Message("assistant", "5")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"data": ["2+3?", "5"]}, [ASKED, SAID]),
        ({"data": ["2+3?", "5"] * 2}, [ASKED, SAID] * 2),
        (
            {
                "messages": [
                    {"role": "user", "content": "2+3?"},
                    {"role": "assistant", "content": "5"},
                ]
            },
            [ASKED, SAID],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Add."},
                    {"role": "user", "content": "2+3?"},
                    {"role": "assistant", "reasoning_content": "2 3", "content": "5"},
                ]
            },
            [Message("system", "Add."), ASKED, Message("assistant", "5", "2 3")],
        ),
        (
            {"data": ["2+3?", "<think>\n2 3\n</think>\n\n5"]},
            [ASKED, Message("assistant", "5", "2 3")],
        ),
        (
            {"data": ["say <think>a</think>b", "<think></think>5"]},
            [Message("user", "say <think>a</think>b"), SAID],
        ),
    ],
)
def test_both_forms_are_read(row: object, expected: list[Message]) -> None:
    assert read_conversation(row) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>b", ("a", "b")),
        ("\n<think>\n a\nb \n</think>\n\nc\n", ("a\nb", "c\n")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("b <think>a</think>", ("", "b <think>a</think>")),
        ("<think>a", ("", "<think>a")),
        ("a</think>b", ("", "a</think>b")),
    ],
)
def test_thinking_stands_at_the_head_or_is_text(text: str, parts: tuple[str, str]) -> None:
    assert split_thought(text) == parts


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "rows.jsonl:7: expected an object, got list"),
        ({}, 'a list under "messages" or "data"; keys: none'),
        ({"text": "a", "messages": "hello"}, "keys: 'text', 'messages'"),
        ({"data": ["a"]}, "1 entries, expected question and answer by turns"),
        ({"data": []}, "0 entries"),
        ({"data": ["a", None]}, 'entry 1 of "data" is NoneType, expected text'),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of an assistant"),
        ({"messages": ["a"]}, "rows.jsonl:7: message 0: expected an object, got str"),
        (
            {"messages": [{"role": "assistnt", "content": "a"}]},
            "message 0: there is no role 'assistnt'. Did you mean 'assistant'",
        ),
        ({"messages": [{"content": "a"}]}, "there is no role None"),
        ({"messages": [{"role": "user"}]}, "message 0: the content is missing, expected text"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "the content is list"),
        (
            {"messages": [{"role": "assistant", "content": "a", "think": 3}]},
            "the thinking is int, expected text",
        ),
    ],
)
def test_a_row_of_another_form_is_named(row: object, words: str) -> None:
    with pytest.raises(DataError) as raised:
        read_conversation(row, where="rows.jsonl:7")
    assert words in raised.value.problem
    assert raised.value.problem.startswith("rows.jsonl:7: ")
