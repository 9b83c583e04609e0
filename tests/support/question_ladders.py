"""A ladder over a file of questions: two untrained models, one a blurred copy of the other.

What is right is what the large model says by itself, so that the small one is right now and then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from support.tiny_models import tiny_model, word_tokenizer

from stepwell.cascade.ladder import LadderConfig
from stepwell.generate.text import TextGenerator
from stepwell.model.weights import save_model

SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 8}
BLUR = 0.1
"""Noise in the small model's head, in units of its spread: about half of its answers stay."""
WORDS = ("the", "a", "cat", "dog", "hat", "mat", "log", "1", "2", "three")


def prompts(count: int) -> list[str]:
    """So many different prompts, at most 1000."""
    return [" ".join(words) for words in product(WORDS, repeat=3)][::-1][:count]


def save_pair(folder: Path) -> TextGenerator:
    """Writes the models `small` and `large`; gives the large one."""
    tokenizer = word_tokenizer()
    model = tiny_model(tokenizer, seed=1)
    save_model(model, folder / "large")
    noise = torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.weight.add_(BLUR * model.head.weight.std() * noise)
    save_model(model, folder / "small")
    for name in ("small", "large"):
        tokenizer.save(folder / name)
    return TextGenerator.load(folder / "large")


def write_questions(path: Path, large: TextGenerator, asked: Sequence[str]) -> None:
    """Each prompt with what the large model says to it."""
    answers = [answer.text for [answer] in large.generate_batch(asked, **SAMPLING)]
    rows = [{"prompt": one, "answer": other} for one, other in zip(asked, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def question_ladder(
    folder: Path, *, count: int = 64, large: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """The ladder file, its models and questions, written; `large` replaces the large stage."""
    generator = save_pair(folder)
    write_questions(folder / "questions.jsonl", generator, prompts(count))
    plain = {
        "stages": [
            {"name": "small", "model": "small"},
            {"name": "large", **(large or {"model": "large"})},
        ],
        "predictor": {"hidden": 0, "features": ["prompt", "logprobs", "agreement"]},
        "questions": {"file": "questions.jsonl"},
        "serving": {"max_rows": 16},
        "sampling": SAMPLING,
        **changes,
    }
    LadderConfig.parse(plain).write(folder / "ladder.yaml")
    return folder / "ladder.yaml"


def check_refused(ended: Any, code: int, said: str, fix: str) -> None:
    """A command ended with this code, and with the problem and what to do in two lines."""
    assert ended.code == code
    assert said in ended.err
    assert fix in ended.err
    assert len(ended.err.strip().splitlines()) <= 2
    assert ended.out == ""
