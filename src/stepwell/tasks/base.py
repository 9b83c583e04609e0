"""The task: a configuration from which examples follow, each a pure function of its index.

Owns what every task shares: addressed randomness, splits, encoding, batches, grading and the
fingerprint. A task of one's own gives `example`; the rest comes with it:

    class Doubling(Task):
        digits: int = 2

        def example(self, index: int) -> Example:
            number = self.rng(index).randrange(10**self.digits)
            return Example.completion(f"{number}*2=", str(2 * number), depth=len(str(number)))
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import random
import re
import string
from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import numpy as np
import pydantic
from numpy.typing import NDArray

from stepwell.config import Config, fingerprint
from stepwell.errors import ConfigError, DataError, UsageError, suggest
from stepwell.tasks.example import IGNORE, SPLITS, Batch, Encoded, Example, Target
from stepwell.tasks.source import code_of
from stepwell.text.tokenizer import Tokenizer

__all__ = ["IGNORE", "SPLITS", "Batch", "Encoded", "Example", "Target", "Task"]

ATTEMPTS = 1024  # draws for one place in a split: a split of 5% is missed once in 10**23
SAMPLE = 256  # examples looked at where a task does not say how long its texts are


class Task(Config):
    """A frozen configuration that determines an endless, ordered supply of examples.

    `version` is to be raised when code outside of the class changes what it makes; a change of the
    class itself changes the fingerprint anyway. `alphabet` holds every character of its texts, one
    token each; a task that wants another tokenizer overrides `tokenizer`. `ends`: answers are
    followed by an end-of-sequence token. `memorised`: there is no unseen example, so that all
    splits draw from the same ones.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    alphabet: ClassVar[str] = "\n" + "".join(sorted(string.printable[:95]))
    ends: ClassVar[bool] = True
    memorised: ClassVar[bool] = False

    seed: int = pydantic.Field(default=0, ge=0, description="which of the possible data sets")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Name a task after its class (`MyTask` is my-task) unless it says how it is called."""
        super().__pydantic_init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    # -- what a task makes -----------------------------------------------------------------

    @abstractmethod
    def example(self, index: int) -> Example:
        """The example at `index`, of whatever split: a pure function of the fields and of it."""

    def rng(self, address: int | str) -> random.Random:
        """A source of random numbers that depends only on name, version, seed and `address`."""
        return random.Random(self._key(address))

    def uniform(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """One number in [0, 1) for each index, for tasks that draw whole batches at once.

        Depends only on name, version, seed and index. Source: SplitMix64 (Steele et al. 2014), in
        which the n-th number is known without those before it.
        """
        mixed = np.asarray(indices).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed += np.uint64(self._key("uniform") >> 64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def example_in(self, split: str, i: int) -> Example:
        """The i-th example of a split. No content is in two splits, except in memorised tasks.

        Raises DataError where the task has too few different examples for the split.
        """
        self.check_split(split)
        if self.memorised:
            return self.example(i)
        for index in range(i * ATTEMPTS, (i + 1) * ATTEMPTS):
            example = self.example(index)
            if example.split == split:
                return example
        raise DataError(
            f"Task {self.name}: none of {ATTEMPTS} draws belongs to the {split} split.",
            fix="make the task harder, so that there are more different examples.",
        )

    def by_part(self, split: str, indices: Sequence[int]) -> dict[str, list[int]]:  # noqa: ARG002
        """The indices by the name of the part that is evaluated apart; none where all are one."""
        return {}

    def epochs(self, count: int) -> dict[str, float]:  # noqa: ARG002
        """How often the first `count` examples of the train split go through it.

        By the name under which it is recorded; empty where examples are drawn without end.
        """
        return {}

    def check_split(self, split: str) -> None:
        """Nothing; raises UsageError where `split` is no split."""
        if split not in SPLITS:
            raise UsageError(f"There is no split {split!r}. {suggest(split, SPLITS)}")

    def grade(self, example: Example, answer_text: str) -> bool:
        """Whether an answer is right: by default, the expected one, white space around it aside."""
        return answer_text.strip() == example.answer.strip()

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end what is said."""
        eos = self.tokenizer.eos_id
        return frozenset() if eos is None else frozenset({eos})

    @property
    def is_text(self) -> bool:
        """Whether its examples are stretches of running text, each token of which is trained."""
        return False

    # -- tokens and batches ----------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the task's texts: one token for each character of `alphabet`."""
        return Tokenizer.character(self.alphabet, roles={"eos": "<eos>"} if self.ends else {})

    def encode(self, example: Example) -> Encoded:
        """The example's tokens, and at each position the label that its targets put there.

        Raises DataError where the text is longer than `context_length`, holds characters that the
        tokenizer lacks, or gives no label.
        """
        ids, starts = self._tokens(example)
        labels, depths = [IGNORE] * len(ids), [0] * len(ids)
        for target in example.targets:
            for position, label in self._labels(target, ids, starts):
                labels[position], depths[position] = label, target.depth
        if len(ids) > self.context_length:
            raise DataError(
                f"Task {self.name}: an example has {len(ids)} tokens, more than "
                f"context_length={self.context_length}.",
                fix="let the task's context_length return the length of its longest text.",
            )
        if labels.count(IGNORE) == len(labels):
            raise DataError(f"Task {self.name}: no token of {example.text[:60]!r} gets a label.")
        return Encoded(ids, labels, depths)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The examples of a split at `indices`, encoded and padded. Always a pure function."""
        rows = [self.encode(self.example_in(split, i)) for i in indices]
        return Batch.of(rows, pad=self.tokenizer.pad_id or 0)

    @property
    def context_length(self) -> int:
        """The longest sequence that the task makes, in tokens.

        By default measured on some examples and rounded up; `encode` refuses what is longer still.
        """
        return -(-(self._longest[0] + self._longest[1]) // 64) * 64

    @property
    def max_answer_tokens(self) -> int:
        """How many tokens a model is allowed for an answer, the end-of-sequence token included.

        By default measured on some examples.
        """
        return self._longest[1]

    @cached_property
    def _longest(self) -> tuple[int, int]:
        """The longest text and the longest answer, in tokens, among the first examples."""
        examples = [self.example(index) for index in range(SAMPLE)]
        answers = [
            len(self.tokenizer.encode(target.text)) + self.ends
            for example in examples
            for target in example.targets
            if not target.in_place
        ]
        return max(len(self._tokens(example)[0]) for example in examples), max(answers, default=1)

    @cached_property
    def _ids_of_characters(self) -> dict[str, int] | None:
        """Ids by character, where the tokenizer is the one of `alphabet`: spares a library call."""
        if type(self).tokenizer is not Task.tokenizer:
            return None
        return {character: self.tokenizer.id_of(character) for character in self.alphabet}

    def _tokens(self, example: Example) -> tuple[list[int], Sequence[int]]:
        """The ids of an example's tokens, and the character at which each begins."""
        table = self._ids_of_characters
        if table is None:
            return self._pieces(example)
        try:
            return [table[character] for character in example.text], range(len(example.text))
        except KeyError as error:
            raise DataError(
                f"Task {self.name}: the character {error.args[0]!r} is not in its alphabet.",
                fix="add it to the alphabet of the task's class.",
            ) from None

    def _pieces(self, example: Example) -> tuple[list[int], list[int]]:
        """As `_tokens`, by the tokenizer. Prompt and answer are encoded apart, as in generation:
        no token crosses the border between them."""
        ids: list[int] = []
        starts: list[int] = []
        for begin, end in _segments(example):
            piece, offsets = self.tokenizer.encode_with_offsets(example.text[begin:end])
            ids += piece
            starts += [begin + first for first, _ in offsets]
        return ids, starts

    def _labels(
        self, target: Target, ids: list[int], starts: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """(position, label) for every token that the target asks for."""
        if target.in_place:
            yield bisect_right(starts, target.start) - 1, self._label_id(target.text)
            return
        first = bisect_left(starts, target.start)
        last = bisect_left(starts, target.start + len(target.text))
        for position in range(max(first, 1), last):
            yield position - 1, ids[position]
        eos = self.tokenizer.eos_id
        if self.ends and eos is not None and last == len(ids):
            yield last - 1, eos

    def _label_id(self, label: str) -> int:
        """The id of a label that stands in place. Raises DataError where it is not one token."""
        table = self._ids_of_characters
        if table is not None and label in table:
            return table[label]
        ids = self.tokenizer.encode(label)
        if len(ids) != 1:
            raise DataError(f"Task {self.name}: the label {label!r} is {len(ids)} tokens, not one.")
        return ids[0]

    # -- identity --------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """The plain values that decide what the task makes: a file's content, not its path."""
        return self.plain()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, version, code, values and tokenizer: the version of the data."""
        kinds = [kind for kind in type(self).__mro__ if kind not in Config.__mro__]
        return fingerprint(
            {
                "version": self.version,
                "code": [code_of(kind) for kind in (*kinds, Example)],
                "values": self.identity(),
                "tokenizer": self.tokenizer.fingerprint,
            }
        )

    def _key(self, address: int | str) -> int:
        """128 bits that depend on name, version, seed and address, and on nothing else."""
        text = f"{self.name}/{self.version}/{self.seed}/{address}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")

    # -- configuration ---------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Whether both are the same task with the same values, whatever either has computed."""
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name in self._fields()
        )

    def __hash__(self) -> int:
        return hash((self.name, *(getattr(self, name) for name in self._fields())))

    @classmethod
    def _fields(cls) -> tuple[str, ...]:
        return tuple(cls.model_fields)

    @pydantic.model_serializer(mode="plain")
    def _with_name(self) -> dict[str, Any]:
        """The fields, after the name by which `task_from_plain` finds the class again."""
        return {"name": self.name, **{name: getattr(self, name) for name in self._fields()}}

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        """A configuration that holds a task takes its plain form or its bare name too."""
        if inspect.isabstract(cls) and isinstance(value, Mapping | str):
            return cast(Self, task_from_plain(value))
        if isinstance(value, Mapping) and value.get("name") == cls.name:
            value = {key: entry for key, entry in value.items() if key != "name"}
        return handler(value)


def task_from_plain(values: Mapping[str, Any] | str) -> Task:
    """The task whose plain form is `values`: its name, with its fields as far as they are given.

    Finds every task whose class has been imported, the user's own too; of two with one name the one
    defined later. Raises ConfigError.
    """
    fields = {"name": values} if isinstance(values, str) else dict(values)
    name = fields.pop("name", None)
    known = {kind.name: kind for kind in _all_tasks()}
    if not isinstance(name, str) or name not in known:
        hint = suggest(str(name), known) if name else f"Known: {', '.join(sorted(known))}."
        raise ConfigError(
            f"There is no task {name!r}. {hint}",
            fix="for a task of your own, import the module that defines it first.",
        )
    return known[name].parse(fields, where=f"task {name}")


def _all_tasks() -> Iterator[type[Task]]:
    """All tasks that can be made, those that others derive from first."""
    kinds = Task.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
        if not inspect.isabstract(kind):
            yield kind


def _segments(example: Example) -> list[tuple[int, int]]:
    """Stretches of the text between the borders of its completion targets, none of them empty."""
    borders = {0, len(example.text)}
    for target in example.targets:
        if not target.in_place:
            borders |= {target.start, target.start + len(target.text)}
    ordered = sorted(borders)
    return list(itertools.pairwise(ordered))
