"""The preview: what is marked is what is trained."""

from __future__ import annotations

from typing import ClassVar

import pytest

from stepwell.cli.console import Output
from stepwell.cli.preview import show_examples, tokens_of
from stepwell.errors import DataError
from stepwell.tasks import IGNORE, TASKS, Encoded, Example, Facts, Task, VariableRenaming

NEED_MORE = {"corpus", "documents", "pairs", "chats", "gsm8k", "mixture"}  # than their defaults


def test_the_answer_of_a_completion_is_marked(run) -> None:
    example = Facts().example_in("train", 0)
    prompt, answer = example.prompt, "".join(f"[{letter}]" for letter in example.answer)
    ended = run("preview", "--task", "facts")
    assert ended.out.splitlines() == ["facts, train 0: 8 tokens, 3 trained", prompt + answer]


def test_labels_in_place_follow_an_arrow(run) -> None:
    shown = run("preview", "--task", "variable-renaming", "--renames", 4, "--chains", 4).out
    example = VariableRenaming(renames=4).example_in("train", 0)
    names = example.text[2::4]
    line = "".join(f"{n + 1}>[{name}→{n + 1}];" for n, name in enumerate(names))
    assert shown.splitlines()[1] == line


@pytest.mark.parametrize("name", sorted(TASKS.keys() - NEED_MORE))
def test_every_label_is_shown_once_and_nothing_else_is(name: str) -> None:
    task = TASKS[name]()
    example = task.example_in("validation", 1)
    encoded = task.encode(example)
    labels = [task.tokenizer.token(label) for label in encoded.labels if label != IGNORE]
    shown = tokens_of(task, example)
    assert [each.label for each in shown if each.label is not None] == labels
    tokens = [task.tokenizer.token(token) for token in encoded.ids]
    added = 1 if encoded.labels[-1] != IGNORE and not example.targets[0].in_place else 0
    assert [each.token for each in shown][: len(tokens)] == tokens
    assert len(shown) == len(tokens) + added


def test_json_holds_the_tokens(run) -> None:
    [first, second] = run("preview", "--task", "arithmetic", "--count", 2, "--json").json
    assert (first["index"], second["index"]) == (0, 1)
    assert first["trained"] == sum(token["label"] is not None for token in first["tokens"])
    assert first["tokens"][-1] == {
        "token": "<eos>",
        "label": "<eos>",
        "depth": first["tokens"][-1]["depth"],
    }


def test_colour_takes_the_place_of_brackets(run, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = run("preview", "--task", "facts").out
    assert "\x1b[1;32m" in shown
    assert "[c]" not in shown.replace("\x1b[", "")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "][" in run("preview", "--task", "facts").out


class Untrained(Task):
    """A task whose encoding forgets its labels."""

    ends: ClassVar[bool] = False

    def example(self, index: int) -> Example:
        return Example.completion(f"{index}=", "1")

    def encode(self, example: Example) -> Encoded:
        encoded = super().encode(example)
        return Encoded(encoded.ids, [IGNORE] * len(encoded.ids), encoded.depths)


def test_an_example_that_trains_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="trains no token"):
        show_examples(Untrained(), "train", range(1), Output())
