"""Does a model that thinks aloud calculate better than one that answers at once?

Trains two models of one shape on the same sums (`examples.arithmetic_chat`), one with the steps as
thinking and one without, and asks both sums of numbers that were not together in any row of the
training: `python -m benchmarks.think_format`. Prints how many replies are in format, how many are
right, by the number of steps, and how many are right in the later turns of a conversation. Finished
runs are reused.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import stepwell as sw
from examples.arithmetic_chat import write
from stepwell.generate.request import Event, FinishedEvent, TokenEvent
from stepwell.text.chat import Chat
from stepwell.text.messages import Message
from stepwell.train.config import OptimizerConfig

CONVERSATIONS = 20_000
TALKS = 200  # conversations whose later turns are asked
DATA, RUNS = Path("runs/sums-data"), Path("runs")
NUMBER = re.compile(r"\d+")


class Asked(NamedTuple):
    """A question, the answer, and how many steps lead to it."""

    question: str
    answer: str
    steps: int


class Replied(NamedTuple):
    """What became of a question."""

    asked: Asked
    in_format: bool
    right: bool


def config(data: Path, name: str) -> sw.TrainerConfig:
    """The run of one model; both differ in their data only."""
    return sw.TrainerConfig(
        model=sw.presets["tiny"].resized(width=192, num_layers=4, num_heads=6),
        task=sw.tasks.Chats(path=data),
        steps=2500,
        batch_size=64,
        pack=True,
        precision="bfloat16",
        optimizer=OptimizerConfig(lr=3e-3, final_share=0.02),
        evaluate_every=500,
        evaluation_batches=8,
        save_every=500,
        runs=RUNS,
        run_name=name,
    )


def questions(data: Path) -> list[list[Asked]]:
    """The questions of each conversation in the test rows."""
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    return [list(_asked(row["messages"])) for row in rows]


def _asked(messages: list[dict[str, str]]) -> Iterator[Asked]:
    for question, reply in zip(messages[::2], messages[1::2], strict=True):
        text = question["content"]
        yield Asked(text, reply["content"], len(re.findall(r"[-+*]", text)))


def ask_all(generator: sw.TextGenerator, asked: Sequence[Asked], *, thinks: bool) -> list[Replied]:
    """What is replied to each question by itself."""
    chat, engine = Chat(generator.tokenizer), generator.engine
    sampling = generator.defaults.changed(temperature=0.0)
    prompts = [chat.prompt([Message("user", each.question)]) for each in asked]
    handles = [engine.submit(sw.Request(tuple(ids), sampling)) for ids in prompts]
    events = [list(handle) for handle in handles]
    return [
        judged(chat, each, seen, thinks=thinks) for each, seen in zip(asked, events, strict=True)
    ]


def judged(chat: Chat, asked: Asked, events: Sequence[Event], *, thinks: bool) -> Replied:
    """Whether a reply has the form that was taught, and the right number."""
    ids = [event.token_id for event in events if isinstance(event, TokenEvent)]
    text = chat.tokenizer.decode(ids, skip_special=False)
    reply = chat.reply(text.removesuffix(chat.end_of_answer))
    ended = any(isinstance(event, FinishedEvent) and event.reason == "stop" for event in events)
    number = NUMBER.fullmatch(reply.answer) is not None
    well_formed = ended and number and bool(reply.think) == thinks
    return Replied(asked, well_formed, well_formed and reply.answer == asked.answer)


def later_turns(generator: sw.TextGenerator, talks: list[list[Asked]]) -> tuple[int, int, int]:
    """(right, asked, tokens found in the cache) of all but the first question of conversations."""
    right = asked = cached = 0
    for turns in talks:
        talk = sw.Conversation(generator)
        for number, turn in enumerate(turns):
            *_, last = talk.say(turn.question, temperature=0.0)
            assert last.completion is not None
            if number:
                asked, cached = asked + 1, cached + last.completion.usage.cached_tokens
                right += talk.messages[-1].content == turn.answer
    return right, asked, cached


def report(name: str, generator: sw.TextGenerator, talks: list[list[Asked]]) -> str:
    """The lines about one model."""
    replied = ask_all(generator, [turns[0] for turns in talks], thinks=name == "thinking")
    by_steps: dict[int, list[bool]] = {}
    for each in replied:
        by_steps.setdefault(each.asked.steps, []).append(each.right)
    depths = ", ".join(
        f"{steps} steps {sum(right) / len(right):.1%} of {len(right)}"
        for steps, right in sorted(by_steps.items())
    )
    longer = [turns for turns in talks if len(turns) > 1]
    right, asked, cached = later_turns(generator, longer[:TALKS])
    return (
        f"{name}: {len(replied)} questions, in format"
        f" {sum(each.in_format for each in replied) / len(replied):.1%},"
        f" right {sum(each.right for each in replied) / len(replied):.1%} ({depths});"
        f" later turns: right {right / asked:.1%} of {asked}, {cached / asked:.1f} tokens a turn"
        " found in the cache"
    )


def main() -> None:
    """Write the data, train both models, and print what they reply."""
    for name, think in (("thinking", True), ("at once", False)):
        data = DATA / name.replace(" ", "-")
        if not data.exists():
            write(data, CONVERSATIONS, think=think)
        run = sw.Trainer(config(data, f"sums-{data.name}")).train()
        generator = sw.TextGenerator.load(run.directory)
        sys.stdout.write(report(name, generator, questions(data)) + "\n")


if __name__ == "__main__":
    main()
