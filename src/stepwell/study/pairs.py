"""Pairs of texts that a model answers differently: a clean one and a corrupted one.

Both texts of a pair have equally many tokens, so that what happens at a position can be compared,
and are scored by the same two answers: the right one to the clean text and to the corrupt one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepwell.errors import PromptError
from stepwell.generate.text import TextGenerator
from stepwell.study.metric import Metric
from stepwell.study.question import Question, Texts, answers, check_metric, likeliest, read


@dataclass(frozen=True)
class Pairs:
    """The question about the clean texts, and the same about the corrupt ones."""

    clean: Question
    corrupt: Question


def ask_pairs(
    generator: TextGenerator,
    clean: Texts,
    corrupt: Texts,
    right: Texts | None,
    wrong: Texts | None,
    metric: Metric,
) -> Pairs:
    """The questions about pairs; answers are by default the likeliest to each of the two texts.

    Raises PromptError for texts that do not pair, and where logits are to differ but the answers do
    not.
    """
    check_metric(metric)
    cleans, corrupts = read(generator, clean), read(generator, corrupt)
    _check_lengths(generator, cleans, corrupts)
    rights = answers(generator, right, len(cleans)) or _first(generator, cleans)
    wrongs = answers(generator, wrong, len(cleans)) or _first(generator, corrupts)
    for text, one, other in zip(cleans, rights, wrongs, strict=True):
        if one == other and metric == "logit_difference":
            answer = generator.tokenizer.token(one)
            raise PromptError(
                f"The answer to {_shown(generator, text)} and to its corrupt text is {answer!r}"
                " alike, so there is no difference to explain.",
                fix="choose texts that the model answers differently, or name right and wrong.",
            )
    given = tuple(rights), tuple(wrongs), metric
    return Pairs(Question(cleans, *given), Question(corrupts, *given))


def _first(generator: TextGenerator, texts: Sequence[Sequence[int]]) -> list[int]:
    return [first for first, _ in likeliest(generator, texts)]


def _check_lengths(
    generator: TextGenerator, cleans: Sequence[Sequence[int]], corrupts: Sequence[Sequence[int]]
) -> None:
    if len(cleans) != len(corrupts):
        raise PromptError(
            f"{len(cleans)} clean texts do not pair with {len(corrupts)} corrupt ones.",
            fix="give one corrupt text for each clean one.",
        )
    for one, other in zip(cleans, corrupts, strict=True):
        if len(one) != len(other):
            raise PromptError(
                f"The clean text {_shown(generator, one)} has {len(one)} tokens, its corrupt one"
                f" {len(other)}.",
                fix="corrupt a text by replacing tokens, so that positions stay comparable.",
            )


def _shown(generator: TextGenerator, text: Sequence[int]) -> str:
    """The text, or its beginning, in quotes."""
    shown = generator.tokenizer.decode(text)
    return repr(shown if len(shown) <= 40 else f"{shown[:37]}...")
