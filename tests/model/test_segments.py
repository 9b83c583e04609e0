"""Several documents in a row: each is read as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stepwell.errors import CacheError, DeviceError, ShapeError
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import Replace
from stepwell.model.transformer import Transformer

LENGTHS = (9, 1, 8, 6)


def documents(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(17, (1, length), generator=generator) for length in LENGTHS]


def side_by_side(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The documents in one row, and the number of each token's."""
    numbers = [torch.full_like(text, number) for number, text in enumerate(texts)]
    return torch.cat(texts, dim=1), torch.cat(numbers, dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_document_beside_others_is_read_as_if_alone(hooked: Transformer, attention: str) -> None:
    hooked.attention_implementation = attention  # type: ignore[assignment]
    hooked.double()
    texts = documents()
    ids, segments = side_by_side(texts)
    together = hooked(ids, segments=segments)
    alone = torch.cat([hooked(text) for text in texts], dim=1)
    bound = 1e-12 if attention == "sdpa" else 1e-5  # eager: a softmax in float32
    torch.testing.assert_close(together, alone, atol=bound, rtol=0)
    assert (hooked(ids) - alone).abs().max() > 1e-3, "without segments they see each other"


@torch.no_grad()
def test_what_one_document_says_moves_no_other(hooked: Transformer) -> None:
    """To the bit: it is masked, not merely far away."""
    ids, segments = side_by_side(documents())
    other = ids.clone()
    other[:, : LENGTHS[0]] = (other[:, : LENGTHS[0]] + 1) % 17
    before, after = hooked(ids, segments=segments), hooked(other, segments=segments)
    assert torch.equal(before[:, LENGTHS[0] :], after[:, LENGTHS[0] :])
    assert not torch.equal(before[:, : LENGTHS[0]], after[:, : LENGTHS[0]])


@torch.no_grad()
def test_one_document_a_row_is_the_plain_pass(hooked: Transformer) -> None:
    ids = torch.cat(documents(), dim=1)
    whole = hooked(ids, segments=torch.zeros_like(ids))
    torch.testing.assert_close(whole, hooked(ids), atol=1e-5, rtol=0)  # float32


@torch.no_grad()
def test_only_where_the_number_changes_counts(llama: Transformer) -> None:
    ids = torch.cat(documents(), dim=1)[:, :6]
    coming_back = llama(ids, segments=torch.tensor([[0, 0, 1, 1, 0, 0]]))
    counted = llama(ids, segments=torch.tensor([[0, 0, 1, 1, 2, 2]]))
    assert torch.equal(coming_back, counted)


@torch.no_grad()
def test_positions_of_interventions_count_from_the_start_of_each_document(
    llama: Transformer,
) -> None:
    ids, segments = side_by_side(documents())
    changed = [Replace(point="logits", value=5.0, positions=(2,))]
    logits = llama(ids, segments=segments, hooks=Hooks(changed))
    replaced = (logits == 5.0).all(-1)[0].nonzero().flatten().tolist()
    assert replaced == [2, 12, 20]  # the second document is too short


def test_segments_with_a_cache_are_refused(llama: Transformer) -> None:
    cache = llama.new_cache(1)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    view = cache.append([cache.allocate()], [3])
    with pytest.raises(CacheError, match="one document a row"):
        llama(ids, view=view, segments=ids)


def test_segments_that_do_not_fit_the_ids_are_refused(llama: Transformer) -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    for odd in (ids[:, :2], ids.float()):
        with pytest.raises(ShapeError, match="expected integers"):
            llama(ids, segments=odd)
    with pytest.raises(DeviceError, match="segments are on meta"):
        llama(ids, segments=ids.to("meta"))
