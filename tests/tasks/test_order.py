"""A permutation that is computed place by place."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.tasks.order import _permuted, shuffled


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 255, 257, 1000, 4097])
def test_every_number_has_one_place(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert sorted(shuffled(range(size), size, key).tolist()) == list(range(size))


def test_without_walking_numbers_lie_beyond() -> None:
    """Negative control: the network by itself permutes the next power of 4."""
    alone = _permuted(np.arange(1000, dtype=np.uint64), np.uint64(5), key=1)
    assert alone.max() >= 1000


def test_a_place_is_known_without_the_others() -> None:
    whole = shuffled(range(1000), 1000, 7)
    assert [int(shuffled([place], 1000, 7)[0]) for place in range(50)] == whole[:50].tolist()
    assert shuffled([3, 3, 0], 1000, 7).tolist() == [whole[3], whole[3], whole[0]]


def test_sizes_beyond_memory_are_no_matter() -> None:
    places = np.arange(10_000)
    found = shuffled(places, 2**46 + 1, 5)
    assert len(set(found.tolist())) == len(places)
    assert found.min() >= 0
    assert found.max() <= 2**46


def test_the_order_looks_random() -> None:
    """Correlation of place and number, and of neighbours, within 4 deviations of none."""
    for key in range(20):
        order = shuffled(range(4000), 4000, key).astype(float)
        assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 4 / np.sqrt(4000)
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(4000)


def test_keys_give_different_orders() -> None:
    orders = [shuffled(range(1000), 1000, key) for key in (1, 2, 3, 2**63, 2**64 - 1)]
    same = [(a == b).sum() for n, a in enumerate(orders) for b in orders[:n]]
    assert max(same) < 10  # 1 is expected


def test_the_order_is_the_same_on_every_platform_and_version() -> None:
    assert shuffled(range(8), 1000, 2024).tolist() == [623, 352, 984, 695, 662, 82, 749, 697]
