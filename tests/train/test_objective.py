from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stepwell.model.config import ModelConfig
from stepwell.model.transformer import Transformer
from stepwell.tasks.base import IGNORE, Batch
from stepwell.train.objective import averages, label_loss, label_metrics, pieces, predictions

VOCABULARY = 13


@pytest.fixture
def model() -> Transformer:
    made = Transformer(
        ModelConfig(vocab_size=VOCABULARY, width=16, num_layers=2, num_heads=2, context_length=16)
    )
    made.initialize(1)
    return made


def random_batch(rows: int, seed: int, share: float = 0.5) -> Batch:
    """Random tokens; each position has a label with probability `share`, and a depth of 0 to 3."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, 9), generator=source)
    labels = torch.randint(VOCABULARY, (rows, 9), generator=source)
    labels[torch.rand((rows, 9), generator=source) >= share] = IGNORE
    depths = torch.randint(4, (rows, 9), generator=source)
    return Batch(ids, labels, depths.where(labels != IGNORE, 0))


def test_the_loss_is_torchs_over_all_positions_with_a_label(model):
    """Against cross entropy over whole logits in float64: there nothing is selected first."""
    batch = random_batch(6, seed=0)
    logits = model.double()(batch.ids)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(label_loss(model, batch).double(), expected, rtol=1e-6, atol=0)


def test_positions_without_a_label_give_no_gradient(model):
    batch = random_batch(6, seed=1)
    seen: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.final_norm.register_forward_hook(keep)
    label_loss(model, batch).backward()
    handle.remove()
    masked = batch.labels == IGNORE
    assert not seen[0].grad[masked].any()
    assert seen[0].grad[~masked].abs().sum(-1).min() > 0


def test_later_tokens_than_the_last_label_do_not_matter(model):
    batch = random_batch(4, seed=2)
    batch.labels[:, 5:] = IGNORE
    other = Batch(batch.ids.clone(), batch.labels, batch.depths)
    other.ids[:, 6:] = 0
    assert torch.equal(label_loss(model, batch), label_loss(model, other))


def by_hand(model: Transformer, batches: list[Batch]) -> dict[str, float]:
    """The metrics by enumeration of all labels of all batches, one at a time, in float64."""
    right: dict[str, list[float]] = {}
    losses = []
    for batch in batches:
        logs = model(batch.ids).double().log_softmax(-1)
        for row in range(len(batch.ids)):
            marks = []
            for place in range(batch.ids.shape[1]):
                label = int(batch.labels[row, place])
                if label == IGNORE:
                    continue
                losses.append(-float(logs[row, place, label]))
                marks.append(float(logs[row, place].argmax() == label))
                right.setdefault(f"accuracy/depth_{int(batch.depths[row, place])}", []).append(
                    marks[-1]
                )
            right.setdefault("accuracy", []).extend(marks)
            if marks:
                right.setdefault("answer_accuracy", []).append(float(all(marks)))
    return {"loss": sum(losses) / len(losses), **{k: sum(v) / len(v) for k, v in right.items()}}


@torch.no_grad()
def test_metrics_are_weighted_by_counts(model):
    """A large batch with few labels and a small one with many: each label counts once."""
    batches = [random_batch(40, seed=3, share=0.1), random_batch(2, seed=4, share=0.9)]
    for batch in batches:  # some labels that are right
        said = model(batch.ids).argmax(-1)
        batch.labels[::2] = torch.where(batch.labels == IGNORE, IGNORE, said)[::2]
    parts = [label_metrics(model, batch) for batch in batches]
    expected = by_hand(model, batches)
    assert averages(parts) == pytest.approx(expected, rel=1e-5)
    means = [{name: total / count for name, (total, count) in part.items()} for part in parts]
    unweighted = {name: (means[0][name] + means[1][name]) / 2 for name in expected}
    assert unweighted != pytest.approx(expected, rel=1e-2)


@torch.no_grad()
def test_predictions_are_the_likeliest_tokens_at_each_rows_labels(model):
    batch = random_batch(5, seed=5)
    batch.labels[3] = IGNORE
    said = model(batch.ids).argmax(-1)
    expected = [said[row][batch.labels[row] != IGNORE].tolist() for row in range(5)]
    assert expected[3] == []
    assert predictions(model, batch) == expected


@pytest.mark.parametrize("num_pieces", [1, 2, 3, 7, 8])
def test_pieces_hold_every_row_once_and_their_shares_are_those_of_their_labels(num_pieces):
    batch = random_batch(8, seed=6)
    batch.labels[:4] = IGNORE
    found = pieces(batch, num_pieces)
    labelled = batch.labels[batch.labels != IGNORE]
    assert torch.equal(torch.cat([p.labels[p.labels != IGNORE] for p, _ in found]), labelled)
    for piece, share in found:
        assert share == pytest.approx(int((piece.labels != IGNORE).sum()) / len(labelled))


@torch.no_grad()
def test_shares_make_the_pieces_losses_the_loss_of_the_batch(model):
    batch = random_batch(8, seed=7)
    batch.labels[:3, 1:] = IGNORE
    found = pieces(batch, 3)
    whole = label_loss(model, batch)
    summed = sum(label_loss(model, piece) * share for piece, share in found)
    torch.testing.assert_close(summed, whole, rtol=1e-6, atol=0)
    mean_of_means = sum(label_loss(model, piece) for piece, _ in found) / 3
    assert abs(float(mean_of_means - whole)) > 1e-3
