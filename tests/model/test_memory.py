"""Weights lie side by side on huge pages, and only where there is room for them."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.model import memory, weights
from stepwell.model.config import ModelConfig
from stepwell.model.memory import HUGE_PAGE, REGION, WeightMemory, has_huge_pages, pays_to_copy
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

CONFIG = ModelConfig(vocab_size=19, context_length=16, width=16, num_layers=2, num_heads=2)
SMAPS = Path("/proc/self/smaps")
AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
needs_huge_pages = pytest.mark.skipif(
    not (has_huge_pages() and SMAPS.exists()), reason="the system gives no huge pages"
)
shapes = st.lists(st.integers(0, 9), min_size=1, max_size=3)


def asks_for_huge_pages(address: int) -> bool:
    """Whether the mapping that holds this address asked the system for huge pages."""
    holds = False
    for line in SMAPS.read_text().splitlines():
        if area := AREA.match(line):
            begin, end = (int(bound, 16) for bound in area.groups())
            holds = begin <= address < end
        elif holds and line.startswith("VmFlags:"):
            return "hg" in line.split()
    return False


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from([torch.uint8, torch.bfloat16, torch.float32]))))
def test_tensors_lie_apart_from_each_other_and_aligned(asked) -> None:
    room = WeightMemory()
    made = [room.empty(shape, dtype) for shape, dtype in asked]
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    for number, (tensor, (shape, dtype)) in enumerate(zip(made, asked, strict=True)):
        assert (list(tensor.shape), tensor.dtype) == (shape, dtype)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert torch.all(tensor == number)


def test_a_copy_has_the_values_in_the_format_asked_for() -> None:
    source = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).T
    room = WeightMemory()
    assert torch.equal(room.copy(source), source)
    assert torch.equal(room.copy(source, torch.bfloat16), source.bfloat16())
    large = torch.arange(REGION // 4 + 3, dtype=torch.int32)
    assert torch.equal(room.copy(large), large)


@needs_huge_pages
def test_weights_lie_on_huge_pages_and_leave_with_the_last_tensor() -> None:
    room = WeightMemory()
    first, second = room.empty([8 * HUGE_PAGE], torch.uint8).zero_(), room.empty([4], torch.uint8)
    address = first.data_ptr()
    assert address % HUGE_PAGE == 0
    assert asks_for_huge_pages(address)
    del room, first
    gc.collect()
    assert asks_for_huge_pages(address), "the second tensor is still there"
    del second
    gc.collect()
    assert not asks_for_huge_pages(address)


@needs_huge_pages
def test_memory_that_did_not_ask_lies_on_small_pages() -> None:
    """Negative control."""
    plain = torch.frombuffer(mmap.mmap(-1, 8 * HUGE_PAGE), dtype=torch.uint8)
    assert not asks_for_huge_pages(plain.data_ptr())


@pytest.mark.parametrize(
    ("free", "switch", "pays"),
    [
        (2000, "always [madvise] never", True),
        (2000, "[always] madvise never", True),
        (1999, "always [madvise] never", False),
        (None, "always [madvise] never", False),
        (2000, "always madvise [never]", False),
        (2000, None, False),
    ],
)
def test_copying_pays_where_there_is_room_and_huge_pages(
    free: int | None,
    switch: str | None,
    pays: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if switch is not None:
        (tmp_path / "enabled").write_text(switch)
    monkeypatch.setattr(memory, "SWITCH", tmp_path / "enabled")
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    has_huge_pages.cache_clear()
    try:
        assert pays_to_copy(1000) == (pays and hasattr(memory.mmap, "MADV_HUGEPAGE"))
    finally:
        has_huge_pages.cache_clear()


@pytest.mark.parametrize("pays", [False, True])
def test_a_model_is_copied_where_that_pays_and_mapped_elsewhere(
    pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "pays_to_copy", lambda num_bytes: pays)
    model = Transformer(CONFIG)
    model.initialize(0)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-400:] = bytes(400)
    with path.open("r+b") as file:
        file.write(content)
    ours, theirs = model.state_dict().values(), loaded.state_dict().values()
    assert all(map(torch.equal, ours, theirs)) == pays, "a mapped file shows through"


@needs_huge_pages
def test_what_is_remembered_lies_on_huge_pages_where_it_fills_one() -> None:
    cpu = torch.device("cpu")
    large, small = (memory.zeros((rows, 2**19), torch.float32, cpu) for rows in (4, 0))
    assert asks_for_huge_pages(large.data_ptr())
    assert (large.shape, small.shape) == ((4, 2**19), (0, 2**19))
    assert not large.any()
    wide = ModelConfig(vocab_size=9, context_length=4096, width=64, num_layers=2, num_heads=2)
    cache = Transformer(wide).new_cache(1)
    cache.append([cache.allocate()], [4096])
    assert asks_for_huge_pages(cache.pool.data_ptr())
