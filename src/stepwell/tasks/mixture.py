"""Several tasks learnt at once, each with its share of the examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final, TypeVar

import pydantic

from stepwell.config import Config
from stepwell.errors import ConfigError
from stepwell.tasks.base import Task
from stepwell.tasks.example import Encoded, Example
from stepwell.text.tokenizer import Tokenizer

BLOCK: Final = 1000  # examples within which the shares are exact

Value = TypeVar("Value", bound=Hashable)


class MixturePart(Config):
    """A task and how much of it there is, relative to the other parts."""

    task: Task
    weight: float = pydantic.Field(default=1.0, gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedExample(Example):
    """An example of a mixture: which part it is from, and what that part made."""

    part: int
    made: Example


class Mixture(Task):
    """Examples of several tasks, in shares that are exact in every thousand of them.

    Each part is met in its own order and without gaps, so that a part that is a file is read from
    its first example to its last before any of them comes again. Parts share one tokenizer.
    """

    parts: tuple[MixturePart, ...] = pydantic.Field(
        min_length=1, max_length=BLOCK, description="tasks with weights: [{task: ..., weight: 0.7}]"
    )

    @pydantic.model_validator(mode="after")
    def _every_part_occurs(self) -> Mixture:
        for part, count in zip(self.parts, self.counts, strict=True):
            if not count:
                raise ValueError(
                    f"the weight {part.weight:g} of {part.task.name} is less than one of {BLOCK}"
                    " examples"
                )
        return self

    @cached_property
    def counts(self) -> list[int]:
        """How many of every 1,000 examples are of each part, nearest to the weights."""
        return shares([part.weight for part in self.parts], BLOCK)

    @cached_property
    def tasks(self) -> list[Task]:
        """The parts' tasks. Those that can take a tokenizer and name none take the first one's."""
        first, *others = (part.task for part in self.parts)
        source = getattr(first, "tokenizer_from", None)
        return [first, *(_with_tokenizer(task, source) for task in others)]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of every part. Raises ConfigError where two differ."""
        first, *others = self.tasks
        for task in others:
            if task.tokenizer.fingerprint != first.tokenizer.fingerprint:
                raise ConfigError(
                    f"{_shown(task)} and {_shown(first)} have different tokenizers, of"
                    f" {task.tokenizer.vocab_size} and {first.tokenizer.vocab_size} tokens.",
                    fix="give the first part a tokenizer_from, which other files then take too.",
                )
        return first.tokenizer

    @property
    def context_length(self) -> int:
        """The longest of all parts."""
        return max(task.context_length for task in self.tasks)

    @property
    def end_ids(self) -> frozenset[int]:
        """Those of all parts."""
        return frozenset().union(*(task.end_ids for task in self.tasks))

    @property
    def is_text(self) -> bool:
        """Where all parts are."""
        return all(task.is_text for task in self.tasks)

    @property
    def max_answer_tokens(self) -> int:
        """The longest of all parts."""
        return max(task.max_answer_tokens for task in self.tasks)

    def place(self, split: str, i: int) -> tuple[int, int]:
        """(part, index within it) of the i-th example of a split: a pure function."""
        block, offset = divmod(i, BLOCK)
        part, earlier = self._order(split, block)[offset]
        return part, block * self.counts[part] + earlier

    def epochs(self, count: int) -> dict[str, float]:
        """Those of each part, as `epoch/PART`."""
        block, offset = divmod(count, BLOCK)
        begun = Counter(part for part, _ in self._order("train", block)[:offset])
        found: dict[str, float] = {}
        for part, name in enumerate(self._names):
            own = self.tasks[part].epochs(block * self.counts[part] + begun[part])
            found |= {key.replace("epoch", f"epoch/{name}", 1): value for key, value in own.items()}
        return found

    def by_part(self, split: str, indices: Sequence[int]) -> dict[str, list[int]]:
        """Those of the indices that are of each part, by its name; parts that have none left out.

        A part is called after its task, and -2, -3, ... where an earlier one is called so.
        """
        found: dict[str, list[int]] = {}
        for i in indices:
            found.setdefault(self._names[self.place(split, i)[0]], []).append(i)
        return found

    def example(self, index: int) -> Example:
        """The example at `index`, of whatever split of its part."""
        part, own = self.place("all", index)
        return _mixed(self.tasks[part].example(own), part)

    def example_in(self, split: str, i: int) -> Example:
        """The example of the part whose turn it is; it knows that part."""
        self.check_split(split)
        part, own = self.place(split, i)
        return _mixed(self.tasks[part].example_in(split, own), part)

    def encode(self, example: Example) -> Encoded:
        """As its part does; by the rule of all tasks where another than this made it."""
        if isinstance(example, MixedExample):
            return self.tasks[example.part].encode(example.made)
        return super().encode(example)

    def grade(self, example: Example, answer_text: str) -> bool:
        """As its part does; by the rule of all tasks where another than this made it."""
        if isinstance(example, MixedExample):
            return self.tasks[example.part].grade(example.made, answer_text)
        return super().grade(example, answer_text)

    def identity(self) -> dict[str, Any]:
        """The plain values, with each part's fingerprint for its task."""
        parts = zip(self.tasks, self.parts, strict=True)
        return {
            **super().identity(),
            "parts": [[task.fingerprint, part.weight] for task, part in parts],
        }

    @cached_property
    def _names(self) -> list[str]:
        numbered = _numbered([part.task.name for part in self.parts])
        return [f"{name}-{earlier + 1}" if earlier else name for name, earlier in numbered]

    def _order(self, split: str, block: int) -> list[tuple[int, int]]:
        """(part, how many of it come before in the block) of each example of a block; the latest
        of each split is kept."""
        kept = self._orders.get(split)
        if kept is None or kept[0] != block:
            turns = [part for part, count in enumerate(self.counts) for _ in range(count)]
            self.rng(f"{split}/{block}").shuffle(turns)
            kept = self._orders[split] = (block, _numbered(turns))
        return kept[1]

    @cached_property
    def _orders(self) -> dict[str, tuple[int, list[tuple[int, int]]]]:
        return {}


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each within 1 of its weight's share.

    What rounding down leaves goes to the largest remainders (Hamilton's method).
    """
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: counts[n] - exact[n])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def _numbered(values: Sequence[Value]) -> list[tuple[Value, int]]:
    """Each value, and how many of the same come before it."""
    seen: Counter[Value] = Counter()
    numbered = []
    for value in values:
        numbered.append((value, seen[value]))
        seen[value] += 1
    return numbered


def _mixed(example: Example, part: int) -> MixedExample:
    values = {field.name: getattr(example, field.name) for field in fields(Example)}
    return MixedExample(**values, part=part, made=example)


def _with_tokenizer(task: Task, source: Any) -> Task:
    """The task, with the tokenizer of a model directory where it names none."""
    if source is None or getattr(task, "tokenizer_from", source) is not None:
        return task
    return task.changed(tokenizer_from=source)


def _shown(task: Task) -> str:
    """The task's name, and the file that tells it from others."""
    path = getattr(task, "path", None)
    return task.name if path is None else f"{task.name} ({path})"
