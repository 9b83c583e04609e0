"""What is asked of a model in a study: texts, the token that would be right, and how it is scored.

A score is read from the logits at the end of each text. Higher is better. Owns the forwards that
scores come from, many texts in each; what is changed in them is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from stepwell.errors import LogitsError, PromptError, UsageError, suggest
from stepwell.generate.text import TextGenerator
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Intervention
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer, precise
from stepwell.study.metric import Metric

Texts = str | Sequence[str]
Cell = Sequence[Sequence[Intervention]]
"""The interventions of each text."""
Progress = Callable[[int, int], None]
"""Told how many texts have been read, and how many there are to read."""
BATCH_TOKENS: Final = 8192
"""Tokens of a forward, padding included."""


def _logit_difference(logits_NV: Tensor, right_N: Tensor, wrong_N: Tensor) -> Tensor:
    return _at(logits_NV, right_N) - _at(logits_NV, wrong_N)


def _log_probability(logits_NV: Tensor, right_N: Tensor, _wrong_N: Tensor) -> Tensor:
    return _at(logits_NV.log_softmax(-1), right_N)


def _probability(logits_NV: Tensor, right_N: Tensor, _wrong_N: Tensor) -> Tensor:
    return _at(logits_NV.softmax(-1), right_N)


def _at(values_NV: Tensor, ids_N: Tensor) -> Tensor:
    found: Tensor = values_NV.gather(1, ids_N[:, None])[:, 0]
    return found


METRICS: Final[Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "logit_difference": _logit_difference,
    "log_probability": _log_probability,
    "probability": _probability,
}


@dataclass(frozen=True)
class Question:
    """Texts as token ids, with the right and a wrong next token of each, and the score.

    Raises UsageError for a metric that there is not, PromptError for answers that do not fit.
    """

    texts: tuple[tuple[int, ...], ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    metric: Metric = "logit_difference"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if not self.texts or not len(self.texts) == len(self.right) == len(self.wrong):
            raise PromptError(
                f"{len(self.texts)} texts have {len(self.right)} right and {len(self.wrong)} wrong"
                " answers; expected one of each for every text, and at least one text."
            )
        same = [
            right for right, wrong in zip(self.right, self.wrong, strict=True) if right == wrong
        ]
        if same and self.metric == "logit_difference":
            raise PromptError(
                f"The right and the wrong answer of a text are the same token, {same[0]}.",
                fix="give two answers that differ, or another metric.",
            )

    def score(self, logits_NV: Tensor, texts: Sequence[int] | None = None) -> Tensor:
        """The score of each text, [N], from logits of all texts, or of those numbered."""
        chosen = range(len(self.texts)) if texts is None else texts
        right = torch.tensor([self.right[each] for each in chosen], device=logits_NV.device)
        wrong = torch.tensor([self.wrong[each] for each in chosen], device=logits_NV.device)
        return METRICS[self.metric](logits_NV, right, wrong)

    def scores(
        self,
        model: Transformer,
        cells: Sequence[Cell] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """The score of each text under each cell's interventions, [cells, N], float64 on the CPU.

        Without cells, of the model as it is: [1, N]. Texts go through it together, in batches.
        Raises LogitsError where a score is not finite.
        """
        count = len(self.texts)
        own = [each for cell in cells or [[()] * count] for each in cell]
        rows = [self.texts[row % count] for row in range(len(own))]
        parts: list[Tensor] = []
        for batch in _batches(rows):
            some = slice(batch.start, batch.stop)
            logits_NV = last_logits(model, rows[some], own[some])
            parts.append(self.score(logits_NV, [row % count for row in batch]).double().cpu())
            if progress is not None:
                progress(batch.stop, len(rows))
        scores_N = torch.cat(parts)
        if not scores_N.isfinite().all():
            raise LogitsError("Logits are NaN or infinite, so a text has no score.")
        return scores_N.view(-1, count)


def check_metric(metric: str) -> None:
    """Nothing. Raises UsageError where there is no such metric."""
    if metric not in METRICS:
        raise UsageError(f"metric is {metric!r}. {suggest(metric, METRICS)}")


def ask(
    generator: TextGenerator,
    texts: Texts,
    right: Texts | None = None,
    wrong: Texts | None = None,
    *,
    metric: Metric = "logit_difference",
) -> Question:
    """A question about texts; the answers are texts of one token, by default the two likeliest.

    Raises PromptError for an answer that is not one token, or too few or many of them.
    """
    check_metric(metric)
    ids = read(generator, texts)
    top_N2 = likeliest(generator, ids)
    rights = answers(generator, right, len(ids)) or [first for first, _ in top_N2]
    wrongs = answers(generator, wrong, len(ids)) or [
        second if first == answer else first
        for answer, (first, second) in zip(rights, top_N2, strict=True)
    ]
    return Question(ids, tuple(rights), tuple(wrongs), metric)


def read(generator: TextGenerator, texts: Texts) -> tuple[tuple[int, ...], ...]:
    """The token ids of each text. Raises PromptError where there is no text."""
    encoded = generator.encode([texts] if isinstance(texts, str) else texts)
    if not encoded:
        raise PromptError("There is no text to ask about.", fix="give at least one.")
    return tuple(map(tuple, encoded))


def likeliest(generator: TextGenerator, texts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The two likeliest next tokens of each text, the likelier one first."""
    found: list[tuple[int, int]] = []
    for batch in _batches(texts):
        logits_NV = last_logits(generator.model, texts[batch.start : batch.stop])
        found += [(first, second) for first, second in logits_NV.topk(2).indices.tolist()]
    return found


def answers(generator: TextGenerator, given: Texts | None, count: int) -> list[int] | None:
    """The token of each text's answer, None where none is given; one text stands for all.

    Raises PromptError for an answer that is not one token, or not one answer for each text.
    """
    if given is None:
        return None
    texts = [given] * count if isinstance(given, str) else list(given)
    if len(texts) != count:
        raise PromptError(f"There are {len(texts)} answers to {count} texts, expected one of each.")
    found = [generator.tokenizer.encode(text) for text in texts]
    for text, ids in zip(texts, found, strict=True):
        if len(ids) != 1:
            raise PromptError(
                f"The answer {text!r} is {len(ids)} tokens, expected one.",
                fix="give its first token, with the space before it where it has one.",
            )
    return [ids[0] for ids in found]


def last_logits(
    model: Transformer, texts: Sequence[Sequence[int]], cell: Cell | None = None
) -> Tensor:
    """Logits behind the last token of each text, [N, V], float32 or better, in one forward.

    cell: the interventions of each text.
    """
    lengths = [len(text) for text in texts]
    edits = [[edit for each in own for edit in each.edits] for own in cell or [()] * len(texts)]
    hooks = Hooks.by_row(edits, prompt_lengths=lengths)
    padded = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
    ids_BT = torch.tensor(padded, device=model.device)
    rows = torch.arange(len(texts), device=model.device)
    last = torch.tensor(lengths, device=model.device) - 1
    positions_BT = torch.arange(ids_BT.shape[1], device=model.device).expand_as(ids_BT)
    places = Places(positions_BT, ids_BT, last[:, None] + 1).select(rows, last)
    with torch.inference_mode():
        hidden_BTC = model.hidden(ids_BT, hooks=hooks)
        logits_B1V = model.logits(hidden_BTC[rows, last][:, None], hooks=hooks, places=places)
    return precise(logits_B1V[:, 0])


def _batches(texts: Sequence[Sequence[int]]) -> list[range]:
    """The texts in neighbours whose padded size fits a forward."""
    found, start, longest = [], 0, 0
    for place, text in enumerate(texts):
        longest = max(longest, len(text))
        if place > start and longest * (place + 1 - start) > BATCH_TOKENS:
            found.append(range(start, place))
            start, longest = place, len(text)
    return [*found, range(start, len(texts))]
