"""What is asked of a model in a study: texts, the token that would be right, and how it is scored.

A score is read from the logits at the end of each text. Higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from stepwell.errors import PromptError, UsageError, suggest
from stepwell.generate.text import TextGenerator
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Intervention
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer

Metric = Literal["logit_difference", "log_probability", "probability"]
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
METRIC_NAMES: Final[Mapping[str, str]] = {
    "logit_difference": "logit of the right answer less that of the wrong one",
    "log_probability": "log-probability of the right answer, nats",
    "probability": "probability of the right answer",
}


@dataclass(frozen=True)
class Question:
    """Texts as token ids, with the right and a wrong next token of each, and the score."""

    texts: tuple[tuple[int, ...], ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    metric: Metric = "logit_difference"

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise UsageError(f"metric is {self.metric!r}. {suggest(self.metric, get_args(Metric))}")
        if not self.texts or not len(self.texts) == len(self.right) == len(self.wrong):
            raise PromptError(
                f"{len(self.texts)} texts have {len(self.right)} right and {len(self.wrong)} wrong"
                " answers; expected one of each for every text, and at least one text."
            )

    def score(self, logits_NV: Tensor, texts: Sequence[int] | None = None) -> Tensor:
        """The score of each text, [N], from logits of all texts, or of those numbered."""
        chosen = range(len(self.texts)) if texts is None else texts
        right = torch.tensor([self.right[each] for each in chosen], device=logits_NV.device)
        wrong = torch.tensor([self.wrong[each] for each in chosen], device=logits_NV.device)
        return METRICS[self.metric](logits_NV, right, wrong)


def ask(
    generator: TextGenerator,
    texts: str | Sequence[str],
    right: str | Sequence[str] | None = None,
    wrong: str | Sequence[str] | None = None,
    *,
    metric: Metric = "logit_difference",
) -> Question:
    """A question about texts; the answers are texts of one token, by default the two likeliest.

    Raises PromptError for an answer that is not one token.
    """
    ids = generator.encode([texts] if isinstance(texts, str) else texts)
    top_N2 = last_logits(generator.model, ids).topk(2).indices
    rights = _answers(generator, right, len(ids)) or top_N2[:, 0].tolist()
    wrongs = _answers(generator, wrong, len(ids)) or [
        second if first == answer else first
        for answer, (first, second) in zip(rights, top_N2.tolist(), strict=True)
    ]
    return Question(tuple(map(tuple, ids)), tuple(rights), tuple(wrongs), metric)


def _answers(
    generator: TextGenerator, given: str | Sequence[str] | None, count: int
) -> list[int] | None:
    """The token of each answer; one text stands for all."""
    if given is None:
        return None
    texts = [given] * count if isinstance(given, str) else list(given)
    found = [generator.tokenizer.encode(text) for text in texts]
    for text, ids in zip(texts, found, strict=True):
        if len(ids) != 1:
            raise PromptError(
                f"The answer {text!r} is {len(ids)} tokens, expected one.",
                fix="give its first token, with the space before it where it has one.",
            )
    return [ids[0] for ids in found]


def last_logits(
    model: Transformer,
    texts: Sequence[Sequence[int]],
    interventions: Sequence[Sequence[Intervention]] | None = None,
) -> Tensor:
    """Logits behind the last token of each text, [N, V], float32 on the CPU.

    interventions: those of each text. Texts go through the model together, in batches.
    """
    parts = []
    with torch.inference_mode():
        for batch in _batches(texts):
            own = None if interventions is None else interventions[batch.start : batch.stop]
            parts.append(_forward(model, texts[batch.start : batch.stop], own))
    return torch.cat(parts)


def _forward(
    model: Transformer,
    texts: Sequence[Sequence[int]],
    interventions: Sequence[Sequence[Intervention]] | None,
) -> Tensor:
    lengths = [len(text) for text in texts]
    edits = [[edit for each in own for edit in each.edits] for own in interventions or ()]
    hooks = Hooks.by_row(edits, prompt_lengths=lengths) if edits else None
    padded = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
    ids_BT = torch.tensor(padded, device=model.device)
    hidden_BTC = model.hidden(ids_BT, hooks=hooks)
    rows = torch.arange(len(texts), device=model.device)
    last = torch.tensor(lengths, device=model.device) - 1
    positions_BT = torch.arange(ids_BT.shape[1], device=model.device).expand_as(ids_BT)
    places = Places(positions_BT, ids_BT, last[:, None] + 1).select(rows, last)
    logits_B1V = model.logits(hidden_BTC[rows, last][:, None], hooks=hooks, places=places)
    return logits_B1V[:, 0].float().cpu()


def _batches(texts: Sequence[Sequence[int]]) -> list[range]:
    """The texts in neighbours whose padded size fits a forward."""
    found, start, longest = [], 0, 0
    for place, text in enumerate(texts):
        longest = max(longest, len(text))
        if place > start and longest * (place + 1 - start) > BATCH_TOKENS:
            found.append(range(start, place))
            start, longest = place, len(text)
    return [*found, range(start, len(texts))]
