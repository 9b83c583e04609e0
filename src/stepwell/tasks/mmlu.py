"""MMLU as questions that a model can be asked, where its files lie in the local datasets cache.

Nothing is fetched: lm-evaluation-harness, or the datasets library, has put the files there. Owns
where they lie, the prompt, and when a letter is right. Source: Hendrycks et al. 2021, Measuring
Massive Multitask Language Understanding; the prompt is that of lm-evaluation-harness.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from stepwell.config import fingerprint
from stepwell.errors import DataError
from stepwell.tasks.questions import Question, Questions

FOLDER: Final = "cais___mmlu"
LETTERS: Final = "ABCD"
FILES: Final = "*/*/*/*-test*.arrow"  # subject, version, hash
ALL: Final = "all"  # the subject that holds all others


def mmlu_questions(cache: str | Path | None = None) -> Questions:
    """The test questions that are in the cache, subjects mixed, in the same order always.

    cache: the datasets library's own where it is not given. An answer is right by its first letter.
    Raises DataError where there are none, or where a file is no MMLU.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            "MMLU is read by the datasets library, which is not installed.",
            fix="pip install 'stepwell[datasets]'",
        )
    import datasets

    root = Path(cache or datasets.config.HF_DATASETS_CACHE) / FOLDER
    files = sorted(root.glob(FILES))
    subjects = {_subject(root, file) for file in files}
    chosen = [file for file in files if len(subjects) == 1 or _subject(root, file) != ALL]
    if not chosen:
        raise DataError(
            f"{root} holds no test questions of MMLU.",
            fix="fetch them where there is a network, by `lm_eval --tasks mmlu` or"
            ' `datasets.load_dataset("cais/mmlu", "all")`; HF_DATASETS_CACHE says where they lie.',
        )
    items = [
        _question(row, file) for file in chosen for row in datasets.Dataset.from_file(str(file))
    ]
    items.sort(key=lambda item: fingerprint(item.prompt))
    content = fingerprint([[item.prompt, item.expected] for item in items])
    return Questions(tuple(items), {"mmlu": content})


def is_letter(right: str, text: str) -> bool:
    """Whether a text begins with the right letter, and not with a word that does."""
    said = text.strip()
    return said[:1] == right and not said[1:2].isalpha()


def _subject(root: Path, file: Path) -> str:
    return file.relative_to(root).parts[0]


def _question(row: Any, file: Path) -> Question:
    text, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not (isinstance(text, str) and _is_choices(choices) and answer in range(len(LETTERS))):
        raise DataError(
            f"{file} has a row without a question, {len(LETTERS)} choices and an answer.",
            fix="delete the file; lm-evaluation-harness fetches it again.",
        )
    pairs = zip(LETTERS, choices, strict=True)
    offered = "".join(f"{letter}. {choice}\n" for letter, choice in pairs)
    right = LETTERS[answer]
    return Question(f"{text.strip()}\n{offered}Answer:", right, partial(is_letter, right))


def _is_choices(choices: Any) -> bool:
    return isinstance(choices, Sequence) and len(choices) == len(LETTERS)
