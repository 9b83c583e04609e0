"""Conversations about sums of several steps, in which no set of numbers is in two splits.

python -m examples.arithmetic_chat sums --no-think
stepwell train --task chats --path sums --run-name sums
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from stepwell.tasks.example import SPLITS, split_of


def exchange(rng: random.Random, *, think: bool) -> tuple[str, list[dict[str, str]]]:
    """A split, and a question of 2 to 4 steps that belongs to it with its reply."""
    value = rng.randint(2, 99)
    text, steps, numbers = str(value), list[str](), [value]
    while len(steps) < 2 or (len(steps) < 4 and rng.random() < 0.5):
        sign = rng.choice("+-*")
        number = rng.randint(2, 9 if sign == "*" else 99)
        result = {"+": value + number, "-": value - number, "*": value * number}[sign]
        if 0 <= result <= 999:
            text = f"({text})*{number}" if sign == "*" and steps else f"{text}{sign}{number}"
            steps.append(f"{value}{sign}{number}={result}")
            numbers.append(number)
            value = result
    reply = {"role": "assistant", "content": str(value)}
    reply |= {"think": " ".join(steps)} if think else {}
    home = split_of(" ".join(map(str, sorted(numbers))))
    return home, [{"role": "user", "content": f"{text}?"}, reply]


def write(directory: Path, count: int, *, think: bool = True, seed: int = 0) -> None:
    """A file for each split, together `count` conversations of one, two or six exchanges."""
    rng = random.Random(seed)
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    for _ in range(count):
        home, messages = exchange(rng, think=think)
        for _ in range(rng.choice((0, 0, 1, 5))):
            other = ""
            while other != home:
                other, more = exchange(rng, think=think)
            messages += more
        rows[home].append(json.dumps({"messages": messages}))
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
