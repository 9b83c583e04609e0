"""What training minimises and evaluation counts, at the positions that have a label.

Pure functions of a model and a batch. Positions without a label cost nothing beyond the hidden
state: the head is applied to the labelled ones only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.model.transformer import Transformer, precise
from stepwell.tasks.base import IGNORE, Batch

Counted = Mapping[str, tuple[float, float]]
"""(sum, count) by name."""


@dataclass(frozen=True)
class Labelled:
    """The N labelled positions of a batch, row by row: logits [N, V] in float32 or
    float64, the rest [N] int64.

    answers: numbers that differ from row to row, and from document to document within a row.
    """

    logits: Tensor
    labels: Tensor
    depths: Tensor
    rows: Tensor
    answers: Tensor


def labelled(model: Transformer, batch: Batch) -> Labelled:
    """The model's logits where the batch has labels: labels[t] belongs to logits[t] as it is."""
    places_N = _places(batch)
    rows_N = places_N // batch.ids.shape[1]
    answers_N = rows_N
    if batch.segments is not None:
        answers_N = rows_N * batch.ids.shape[1] + batch.segments.flatten()[places_N]
    return Labelled(
        logits=precise(model.logits(_hidden(model, batch, places_N))),
        labels=batch.labels.flatten()[places_N],
        depths=batch.depths.flatten()[places_N],
        rows=rows_N,
        answers=answers_N,
    )


def label_loss(model: Transformer, batch: Batch) -> Tensor:
    """Mean cross entropy of the labelled positions, in nats; a scalar."""
    places_N = _places(batch)
    hidden_NC = _hidden(model, batch, places_N)
    return model.cross_entropy(hidden_NC, batch.labels.flatten()[places_N])


def _places(batch: Batch) -> Tensor:
    """Where labels are, among all positions row by row, [N] int64."""
    return (batch.labels.flatten() != IGNORE).nonzero().squeeze(1)


def _hidden(model: Transformer, batch: Batch, places_N: Tensor) -> Tensor:
    """What the head reads at these places, [N, C]. Nothing is copied where they are all places."""
    hidden_MC = model.hidden(batch.ids, segments=batch.segments).flatten(0, 1)
    return hidden_MC if len(places_N) == len(hidden_MC) else hidden_MC[places_N]


def label_metrics(model: Transformer, batch: Batch) -> dict[str, tuple[float, float]]:
    """(sum, count) by name: loss and accuracy over labels, accuracy by depth, answers right.

    An answer counts as right when every label of its row, or of its document in a row of several,
    is, each predicted from the true tokens before it.
    """
    seen = labelled(model, batch)
    right_N = seen.logits.argmax(1) == seen.labels
    loss = F.cross_entropy(seen.logits, seen.labels, reduction="sum")
    answers = _shares(right_N, seen.answers)
    depths = _shares(right_N, seen.depths)
    whole = sum(right == count for right, count in answers.values())
    return {
        "loss": (float(loss), len(right_N)),
        "accuracy": (int(right_N.sum()), len(right_N)),
        "answer_accuracy": (whole, len(answers)),
        **{f"accuracy/depth_{depth}": share for depth, share in depths.items()},
    }


def text_metrics(
    found: Counted, batch: Batch, byte_lengths_V: Tensor
) -> dict[str, tuple[float, float]]:
    """Those of `label_metrics` that say something about running text, and bits a UTF-8 byte.

    The latter can be compared between tokenizers. byte_lengths_V: bytes that each token stands for.
    """
    labels = batch.labels[batch.labels != IGNORE]
    loss, _ = found["loss"]
    bits = loss / math.log(2), int(byte_lengths_V[labels].sum())
    return {"loss": found["loss"], "accuracy": found["accuracy"], "bits_per_byte": bits}


def _shares(right_N: Tensor, groups_N: Tensor) -> dict[int, tuple[int, int]]:
    """(right, all) of the labels in each group that occurs, in order of the groups."""
    counts = torch.bincount(groups_N)
    rights = torch.bincount(groups_N[right_N], minlength=len(counts))
    pairs = zip(rights.tolist(), counts.tolist(), strict=True)
    return {group: (right, count) for group, (right, count) in enumerate(pairs) if count}


def predictions(model: Transformer, batch: Batch) -> list[list[int]]:
    """The likeliest id at each label of each row."""
    seen = labelled(model, batch)
    said_N = seen.logits.argmax(1)
    return [said_N[seen.rows == row].tolist() for row in range(len(batch.ids))]


def averages(parts: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """The mean of each name over batches, each batch weighted by its count."""
    names = dict.fromkeys(name for part in parts for name in part)
    means: dict[str, float] = {}
    for name in names:
        sums, counts = zip(*(part[name] for part in parts if name in part), strict=True)
        means[name] = sum(sums) / sum(counts) if sum(counts) else float("nan")
    return means


def pieces(batch: Batch, num_pieces: int) -> list[tuple[Batch, float]]:
    """The batch in parts of rows, each with its share of all labels; parts without labels left out.

    The shares make the sum of the parts' mean losses the mean loss of the batch.
    """
    if num_pieces == 1:
        return [(batch, 1.0)]
    parts = batch.parts(num_pieces)
    counted = [(part, int((part.labels != IGNORE).sum())) for part in parts]
    total = sum(count for _, count in counted)
    return [(part, count / total) for part, count in counted if count]
