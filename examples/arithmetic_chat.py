"""Conversations about sums of several steps, with the steps as thinking or without.

    python -m examples.arithmetic_chat sums
    stepwell train --task chats --path sums --run-name sums-chat
    stepwell chat runs/sums-chat --temperature 0

No set of numbers is in two splits: in whatever order and with whatever signs, 3 7 20 is either
trained on or tested.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from stepwell.tasks.example import split_of


def problem(rng: random.Random) -> tuple[str, list[str], int, list[int]]:
    """A question of 2 to 4 steps, the steps, the answer, and the numbers in it."""
    value = rng.randint(2, 99)
    text, numbers = str(value), [value]
    steps: list[str] = []
    while len(steps) < 2 or (len(steps) < 4 and rng.random() < 0.5):
        sign, number = rng.choice("+-*"), rng.randint(2, 99)
        number = number % 8 + 2 if sign == "*" else number
        result = {"+": value + number, "-": value - number, "*": value * number}[sign]
        if not 0 <= result <= 999:
            continue
        text = f"({text})*{number}" if sign == "*" and steps else f"{text}{sign}{number}"
        steps.append(f"{value}{sign}{number}={result}")
        numbers.append(number)
        value = result
    return f"{text}?", steps, value, numbers


def conversation(rng: random.Random, *, think: bool) -> tuple[str, dict[str, object]]:
    """A split, and a row of one to three questions that belong to it."""
    turns, split, messages = rng.choice((1, 1, 2, 3)), "", []
    while turns:
        question, steps, answer, numbers = problem(rng)
        home = split_of(" ".join(map(str, sorted(numbers))))
        if split not in ("", home):
            continue
        split, turns = home, turns - 1
        reply = {"role": "assistant", "content": str(answer)}
        messages.append({"role": "user", "content": question})
        messages.append(reply | ({"think": " ".join(steps)} if think else {}))
    return split, {"messages": messages}


def write(directory: Path, count: int, *, think: bool = True, seed: int = 0) -> None:
    """A file for each split, together `count` conversations."""
    rng = random.Random(seed)
    rows: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for _ in range(count):
        split, row = conversation(rng, think=think)
        rows[split].append(json.dumps(row))
    directory.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--no-think", action="store_true")
    given = parser.parse_args()
    write(given.directory, given.conversations, think=not given.no_think)
