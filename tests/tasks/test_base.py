"""A task of one's own: what comes with it, and what it is told when it is wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from stepwell.config import Config
from stepwell.errors import ConfigError, DataError
from stepwell.tasks import IGNORE, SPLITS, Example, Facts, Task, VariableRenaming, task_from_plain
from stepwell.tasks.chains import ChainTask
from stepwell.tasks.source import essential
from stepwell.text.tokenizer import Tokenizer


class Doubling(Task):
    digits: int = 4

    def example(self, index: int) -> Example:
        number = self.rng(index).randrange(10**self.digits)
        return Example.completion(f"{number} doubled: ", str(2 * number), depth=len(str(number)))


class DoublingByBpe(Doubling):
    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        texts = ["77 doubled: 154", "doubled: 1", "doubled: 2"]
        return Tokenizer.train_bpe(texts, 300, roles={"eos": "<end>"})


ROLES = {"eos": "<end>"}


class Endless(Doubling):
    """An answer without an end, although the tokenizer, which comes from elsewhere, has one."""

    ends: ClassVar[bool] = False

    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        return Tokenizer.byte(roles=ROLES)


class Vowels(Task):
    """In place: at each vowel, whether it is an a."""

    def example(self, index: int) -> Example:
        word = "".join(self.rng(index).choices("abei", k=8)) + "e"
        labels = [(i, "ny"[c == "a"], i) for i, c in enumerate(word) if c in "aei"]
        return Example.in_place(word, labels)


class Holder(Config):
    task: Task


def test_a_task_of_ones_own_has_name_tokens_batches_and_lengths() -> None:
    task = Doubling(digits=2)
    example = task.example_in("train", 0)
    assert Doubling.name == "doubling"
    assert example.text == example.prompt + example.answer
    assert int(example.answer) == 2 * int(example.prompt.split()[0])
    batch = task.batch("train", range(8))
    assert batch.ids.shape == batch.labels.shape == batch.depths.shape
    assert task.max_answer_tokens == 4  # three digits and the end
    assert 15 + 4 <= task.context_length <= 64


def test_an_answer_is_trained_with_its_end_and_nothing_else_is() -> None:
    task = Doubling()
    encoded = task.encode(Example.completion("7:", "14", depth=3))
    eos = task.tokenizer.eos_id
    assert encoded.labels == [IGNORE, *task.tokenizer.encode("14"), eos]
    assert encoded.depths == [0, 3, 3, 3]


def test_an_answer_has_no_end_where_the_task_says_so() -> None:
    encoded = Endless().encode(Example.completion("7:", "14"))
    assert Endless().tokenizer.eos_id == 256
    assert encoded.labels == [IGNORE, *b"14", IGNORE]


def test_no_token_crosses_the_border_of_prompt_and_answer() -> None:
    task = DoublingByBpe()
    example = Example.completion("77 doubled:", " 154")
    encoded = task.encode(example)
    prompt, answer = task.tokenizer.encode(example.prompt), task.tokenizer.encode(example.answer)
    assert encoded.ids == prompt + answer
    assert encoded.labels[len(prompt) - 1 :] == [*answer, task.tokenizer.eos_id]
    assert set(encoded.labels[: len(prompt) - 1]) == {IGNORE}
    joined = Example.completion("77 doubl", "ed: 1")
    assert task.encode(joined).ids != task.tokenizer.encode(joined.text)  # the control


def test_labels_in_place_stand_at_their_own_token_and_are_not_followed_by_an_end() -> None:
    task = Vowels()
    encoded = task.encode(Example.in_place("bab", [(1, "y", 5)]))
    assert encoded.labels == [IGNORE, task.tokenizer.id_of("y"), IGNORE]
    assert encoded.depths == [0, 5, 0]
    assert task.max_answer_tokens == 1
    assert task.grade(Example.in_place("bab", [(1, "y", 5)]), "y")


def test_a_label_of_several_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="'yes' is 3 tokens"):
        Vowels().encode(Example.in_place("bab", [(1, "yes", 5)]))


def test_a_text_beyond_the_context_or_the_alphabet_is_refused() -> None:
    with pytest.raises(DataError, match="context_length=64"):
        Doubling().encode(Example.completion("1" * 64, "2"))
    with pytest.raises(DataError, match="'é' is not in its alphabet"):
        Doubling().encode(Example.completion("é", "2"))


def test_a_task_without_example_cannot_be_made() -> None:
    class Empty(Task):
        pass

    for kind in (Task, ChainTask, Empty):
        with pytest.raises(TypeError, match="abstract"):
            kind()


def test_splits_have_their_shares_and_follow_the_content_alone() -> None:
    examples = [Example.completion(f"{n}=", "1") for n in range(20_000)]
    shares = Counter(example.split for example in examples)
    assert [round(shares[split] / 20_000, 2) for split in SPLITS] == [0.90, 0.05, 0.05]
    for example in examples[:200]:
        assert Example.completion(example.prompt, "2", depth=7).split == example.split
        first = hashlib.sha256(example.prompt.encode()).digest()[0]
        if first < 0.9 * 256 - 1:
            assert example.split == "train"


def test_a_space_too_small_for_a_split_is_an_error_and_no_endless_loop() -> None:
    task = Doubling(digits=0)
    home = task.example(0).split
    assert task.example_in(home, 3).text == "0 doubled: 0"
    for split in set(SPLITS) - {home}:
        with pytest.raises(DataError, match=f"belongs to the {split} split"):
            task.example_in(split, 0)


def test_uniform_numbers_are_even_and_do_not_depend_on_their_neighbours() -> None:
    task = Doubling()
    numbers = task.uniform(range(100_000))
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert abs(counts - 1000).max() < 5 * 1000**0.5
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert task.uniform([777, 3])[0] == numbers[777]
    assert task.changed(seed=1).uniform([777])[0] != numbers[777]


def test_a_configuration_holds_a_task_by_its_plain_form_or_its_name() -> None:
    holder = Holder(task={"name": "facts", "facts": 7})
    assert holder.task == Facts(facts=7)
    assert Holder.parse(holder.plain()) == holder
    assert holder.plain()["task"]["facts"] == 7
    assert Holder(task="doubling").task == Doubling()
    assert Holder(task=Doubling(digits=1)).changed().task == Doubling(digits=1)
    assert Holder(task=Doubling()).fingerprint != Holder(task=Doubling(digits=1)).fingerprint


def test_a_field_of_one_kind_of_task_takes_its_own_plain_form() -> None:
    class Narrow(Config):
        task: Facts

    narrow = Narrow(task=Facts(facts=7))
    assert Narrow.parse(narrow.plain()) == narrow
    with pytest.raises(ConfigError):
        Narrow(task={"name": "dag"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "varable-renaming"}, "Did you mean 'variable-renaming'"),
        ({"renames": 3}, "There is no task None. Known: .*facts"),
        ({"name": ["facts"]}, "There is no task"),
        ({"name": "facts", "fact": 3}, "task facts: Facts has no field 'fact'. .*'facts'"),
        ("fcts", "Did you mean 'facts'"),
    ],
)
def test_an_unknown_task_or_field_is_refused_with_a_suggestion(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_from_plain(values)
    with pytest.raises(ConfigError, match=message):
        Holder(task=values)


# -- fingerprints --------------------------------------------------------------------------

VERSION = """
    from __future__ import annotations
    from typing import ClassVar
    from stepwell.tasks import Example, Task

    class Root(Task):
        alphabet = "ab="

        def letter(self, index: int) -> str:
            return "ab"[index % 2]

    class Versioned(Root):
        size: int = 2

        def example(self, index: int) -> Example:
            \"\"\"An example.\"\"\"
            shown = [self.letter(i) for i in range(self.size)]
            return Example.completion("".join(shown) + "=", "b")
"""
CODE_CHANGES = {
    "the class": ('"b")', '"a")'),
    "a nested function": ("self.letter(i) for", "self.letter(i + 1) for"),
    "its base": ("index % 2", "(index + 1) % 2"),
    "its alphabet": ('"ab="', '"ab=c"'),
    "its version": ('"ab="', '"ab="\n        version: ClassVar[int] = 2'),
    "whether answers end": ('"ab="', '"ab="\n        ends: ClassVar[bool] = False'),
}
REMARKS = {
    "a comment": ("shown = ", "# why\n            shown = "),
    "a comment at the end of a line": ('"b")', '"b")  # b'),
    "a docstring": ("An example.", "One example,\n\n            of several lines."),
    "a blank line": ("shown = ", "\n            shown = "),
    "what lies beside the classes": ("class Root", "OTHER = 3\n\n    class Root"),
}


def from_file(source: str, directory: Path) -> str:
    """The fingerprint of Versioned, defined in a module that lies in a file of its own."""
    name = f"versioned_{len(list(directory.iterdir()))}"
    path = directory / f"{name}.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        task: Task = module.Versioned()
        return task.fingerprint


def from_prompt(source: str, _directory: Path) -> str:
    """The fingerprint of Versioned as typed at a prompt, where there is no source to read."""
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec(textwrap.dedent(source), namespace)
    task: Task = namespace["Versioned"]()
    return task.fingerprint


@pytest.mark.parametrize("make", [from_file, from_prompt])
@pytest.mark.parametrize("change", CODE_CHANGES)
def test_another_code_has_another_fingerprint(
    make: Callable[[str, Path], str], change: str, tmp_path: Path
) -> None:
    old, new = CODE_CHANGES[change]
    assert old in VERSION
    assert make(VERSION, tmp_path) != make(VERSION.replace(old, new), tmp_path)


@pytest.mark.parametrize("remark", REMARKS)
def test_the_same_code_with_other_remarks_has_the_same_fingerprint(
    remark: str, tmp_path: Path
) -> None:
    old, new = REMARKS[remark]
    assert old in VERSION
    assert from_file(VERSION, tmp_path) == from_file(VERSION.replace(old, new), tmp_path)


def test_the_same_code_typed_twice_has_the_same_fingerprint(tmp_path: Path) -> None:
    assert from_prompt(VERSION, tmp_path) == from_prompt("\n\n" + VERSION, tmp_path)


def test_configuration_seed_and_tokenizer_change_the_fingerprint() -> None:
    tasks = [
        VariableRenaming(),
        VariableRenaming(renames=20),
        VariableRenaming(seed=1),
        Doubling(),
        DoublingByBpe(),
        DoublingByBpe(digits=3),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert VariableRenaming(renames=150).fingerprint == tasks[0].fingerprint


def test_what_lies_outside_of_the_class_changes_the_fingerprint_by_tokenizer_or_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Endless().fingerprint
    monkeypatch.setitem(ROLES, "eos", "<stop>")
    second = Endless().fingerprint
    monkeypatch.setattr(Endless, "version", 2)
    assert len({first, second, Endless().fingerprint}) == 3


def test_a_hash_sign_in_a_string_is_no_comment() -> None:
    assert "#1" in essential('text = "#1"  # one\n')
    assert "# one" not in essential('text = "#1"  # one\n')
