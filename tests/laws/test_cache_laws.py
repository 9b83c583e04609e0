"""Laws of the key/value cache: whatever is done to its rows, a row is as good as its token list.

Every law compares logits that came through the cache with a full forward, without one, of the text
that the row should stand for (float32, absolute tolerance 1e-5, logits of order 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings, stateful
from hypothesis import strategies as st
from torch import Tensor

from stepwell.errors import CacheError
from stepwell.model.cache import KVCache
from stepwell.model.cache_view import CacheView, _Index
from stepwell.model.config import ModelConfig, RopeScaling
from stepwell.model.forward import ForwardPass
from stepwell.model.transformer import Transformer

VOCABULARY, CONTEXT = 13, 40
TOLERANCE = 1e-5

SMALL = ModelConfig(vocab_size=VOCABULARY, context_length=CONTEXT, width=16, num_heads=4)
SHAPES: Mapping[str, ModelConfig] = {
    "rope": SMALL,
    "learned": SMALL.changed(
        position="learned", norm="layer", qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    "grouped": SMALL.changed(num_kv_heads=2, qkv_bias=True),
    "multi-query": SMALL.changed(num_kv_heads=1, tie_embeddings=False),
    "qk-norm": SMALL.changed(qk_norm=True, head_dim=6),
    "window": SMALL.changed(sliding_window=3, sliding_layers=(1,)),
    "window-everywhere": SMALL.changed(num_kv_heads=2, sliding_window=5, sliding_layers=(0, 1)),
    "scaled": SMALL.changed(
        scale_attention_by_layer=True,
        rope_scaling=RopeScaling(kind="yarn", factor=2.0, original_context_length=20),
    ),
}
LONG = SMALL.changed(num_kv_heads=2, context_length=300)
LAW = settings(max_examples=20, deadline=None, derandomize=True, database=None)

Method = Callable[..., Any]
tokens = st.integers(0, VOCABULARY - 1)
texts = st.lists(tokens, min_size=1, max_size=8)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@cache
def model_of(shape: str) -> Transformer:
    """A random model of a shape, biases and norms included."""
    model = Transformer(LONG if shape == "long" else SHAPES[shape])
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def some_text(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


class Rows:
    """A cache, driven beside the token lists that its rows should stand for."""

    def __init__(self, shape: str, max_rows: int = 4) -> None:
        self.model = model_of(shape)
        self.cache = self.model.new_cache(max_rows)
        self.texts: dict[int, list[int]] = {}

    def allocate(self) -> int:
        row = self.cache.allocate()
        self.texts[row] = []
        return row

    def append(self, step: Mapping[int, Sequence[int]], padding: int = 0) -> None:
        """Append to rows in one padded step, and hold their logits to a full forward's."""
        for row, new in step.items():
            self.texts[row] = [*self.texts[row], *new]
        got = self.run(step, padding)
        for row, new in step.items():
            expected = self.model(torch.tensor([self.texts[row]]))[0, -len(new) :]
            torch.testing.assert_close(got[row], expected, atol=TOLERANCE, rtol=0)

    @torch.no_grad()
    def run(self, step: Mapping[int, Sequence[int]], padding: int = 0) -> dict[int, Tensor]:
        """The logits of each row's new tokens."""
        view = self.cache.append(list(step), [len(new) for new in step.values()])
        longest = max(len(new) for new in step.values())
        ids = [[*new, *[padding] * (longest - len(new))] for new in step.values()]
        logits = self.model(torch.tensor(ids), view=view)
        return {row: logits[i, : len(new)] for i, (row, new) in enumerate(step.items())}

    def truncate(self, row: int, length: int) -> None:
        self.cache.truncate(row, length)
        self.texts[row] = self.texts[row][:length]

    def fork(self, row: int) -> int:
        copy = self.cache.fork(row)
        self.texts[copy] = list(self.texts[row])
        return copy

    def release(self, row: int) -> None:
        self.cache.release(row)
        del self.texts[row]

    def poison(self, row: int, length: int) -> None:
        """Append keys and values that are not numbers."""
        config = self.model.config
        view = self.cache.append([row], [length])
        nan = torch.full((1, config.num_kv_heads, length, config.head_dim), torch.nan)
        for layer in range(config.num_layers):
            view.update(layer, nan, nan)


@every_shape
def test_cached_decoding_equals_a_full_forward(shape: str) -> None:
    rows = Rows(shape)
    row = rows.allocate()
    rows.append({row: some_text(5)})
    for token in some_text(20, seed=1):
        rows.append({row: [token]})


@every_shape
@LAW
@given(chunks=st.lists(texts, min_size=1, max_size=5))
def test_prefill_in_any_chunks_equals_the_whole(shape: str, chunks: list[list[int]]) -> None:
    rows = Rows(shape)
    row = rows.allocate()
    for chunk in chunks:
        rows.append({row: chunk})


@every_shape
@LAW
@given(
    steps=st.lists(st.tuples(texts, texts), min_size=2, max_size=4),
    padding=tokens,
    backwards=st.booleans(),
)
def test_a_ragged_batch_equals_each_row_alone(
    shape: str, steps: list[tuple[list[int], list[int]]], padding: int, backwards: bool
) -> None:
    rows = Rows(shape)
    order = sorted((rows.allocate() for _ in steps), reverse=backwards)
    for part in zip(*steps, strict=True):
        rows.append(dict(zip(order, part, strict=True)), padding)
    rows.append({row: [padding] for row in order})


@every_shape
@LAW
@given(prompt=texts, forgotten=texts, kept=st.integers(0, 8), new=texts)
def test_truncating_equals_never_having_appended(
    shape: str, prompt: list[int], forgotten: list[int], kept: int, new: list[int]
) -> None:
    kept = min(kept, len(prompt))
    rows = Rows(shape)
    row, neighbour = rows.allocate(), rows.allocate()
    rows.append({row: prompt, neighbour: some_text(20)})
    rows.append({row: forgotten})
    rows.truncate(row, kept)
    assert rows.cache.length(row) == kept
    rows.append({row: new, neighbour: new[:1]})


@every_shape
@LAW
@given(prompt=texts, ours=texts, theirs=texts)
def test_a_fork_and_its_origin_diverge_like_separate_rows(
    shape: str, prompt: list[int], ours: list[int], theirs: list[int]
) -> None:
    rows = Rows(shape)
    origin = rows.allocate()
    rows.append({origin: prompt})
    copy = rows.fork(origin)
    assert rows.cache.length(copy) == len(prompt)
    rows.append({origin: ours, copy: theirs})
    grandchild = rows.fork(copy)
    rows.truncate(copy, 1)
    rows.append({origin: ours[:1], copy: ours, grandchild: theirs})
    rows.release(origin)
    rows.append({copy: theirs, grandchild: ours})


@every_shape
def test_a_reused_row_equals_a_fresh_one(shape: str) -> None:
    rows = Rows(shape, max_rows=2)
    first, second = rows.allocate(), rows.allocate()
    rows.append({first: some_text(12), second: some_text(9, seed=1)})
    rows.release(first)
    assert rows.allocate() == first
    rows.append({first: some_text(3, seed=2), second: some_text(1, seed=3)})
    rows.append({first: some_text(12, seed=4)})


@every_shape
def test_nan_in_a_row_reaches_neither_neighbours_nor_successors(shape: str) -> None:
    rows = Rows(shape, max_rows=3)
    healthy, sick, other = (rows.allocate() for _ in range(3))
    rows.append({healthy: some_text(4), sick: some_text(2), other: some_text(20)})
    rows.poison(sick, 9)
    rows.append({healthy: [1], other: [2, 3]})
    together = rows.run({healthy: [5], sick: [5]})
    assert together[sick].isnan().all()
    assert together[healthy].isfinite().all()
    rows.truncate(healthy, 5)
    rows.truncate(sick, 2)
    rows.append({healthy: [4], sick: [4], other: [4]})
    rows.poison(sick, 9)
    rows.release(sick)
    assert rows.allocate() == sick
    rows.append({healthy: [6], sick: [6, 7], other: [6]})


@every_shape
def test_overflow_raises_and_changes_nothing(shape: str) -> None:
    rows = Rows(shape)
    long, short = rows.allocate(), rows.allocate()
    rows.append({long: some_text(CONTEXT - 1), short: some_text(3)})
    with pytest.raises(CacheError, match=f"Row {long} would reach {CONTEXT + 1} tokens"):
        rows.cache.append([short, long], [2, 2])
    assert (rows.cache.length(long), rows.cache.length(short)) == (CONTEXT - 1, 3)
    rows.append({long: [1], short: [2]})


def test_growth_changes_nothing() -> None:
    rows = Rows("long")
    quiet, busy = rows.allocate(), rows.allocate()
    rows.append({quiet: some_text(10), busy: some_text(30, seed=1)})
    capacities = [rows.cache.capacity]
    for length in (34, 1, 70, 120):  # 30 + 34 fills the first capacity exactly
        rows.append({quiet: some_text(2, seed=length), busy: some_text(length, seed=length)})
        capacities.append(rows.cache.capacity)
    assert capacities == sorted(capacities)
    assert len(set(capacities)) == 3


@every_shape
def test_rows_need_not_be_neighbours_nor_in_order(shape: str) -> None:
    rows = Rows(shape)
    for _ in range(4):
        rows.allocate()
    rows.append({2: some_text(6), 0: some_text(6, seed=1)})
    rows.append({3: some_text(6, seed=2), 0: some_text(2, seed=3)})
    rows.append({0: [1], 2: [2], 3: [3]})
    rows.append({1: some_text(4), 3: [4]})
    rows.append({3: [5], 2: [6], 1: [7], 0: [8]})


class CacheMachine(stateful.RuleBasedStateMachine):
    """Every verb, in any order, on rows that share a cache."""

    @stateful.initialize(shape=st.sampled_from(sorted(SHAPES)))
    def begin(self, shape: str) -> None:
        self.rows = Rows(shape)

    @stateful.precondition(lambda self: self.rows.cache.num_free)
    @stateful.rule()
    def allocate(self) -> None:
        self.rows.allocate()

    @stateful.precondition(lambda self: self.rows.texts)
    @stateful.rule(data=st.data(), padding=tokens)
    def append(self, data: st.DataObject, padding: int) -> None:
        chosen = data.draw(
            st.lists(st.sampled_from(sorted(self.rows.texts)), min_size=1, unique=True)
        )
        step = {row: data.draw(texts) for row in chosen}
        if all(len(self.rows.texts[row]) + len(new) <= CONTEXT for row, new in step.items()):
            self.rows.append(step, padding)
        else:
            with pytest.raises(CacheError, match="would reach"):
                self.rows.run(step)

    @stateful.precondition(lambda self: self.rows.texts)
    @stateful.rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows.texts)))
        self.rows.truncate(row, data.draw(st.integers(0, len(self.rows.texts[row]))))

    @stateful.precondition(lambda self: self.rows.texts and self.rows.cache.num_free)
    @stateful.rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.rows.fork(data.draw(st.sampled_from(sorted(self.rows.texts))))

    @stateful.precondition(lambda self: self.rows.texts)
    @stateful.rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.rows.release(data.draw(st.sampled_from(sorted(self.rows.texts))))

    @stateful.invariant()
    def lengths_are_those_of_the_texts(self) -> None:
        lengths = {row: self.rows.cache.length(row) for row in self.rows.texts}
        assert lengths == {row: len(text) for row, text in self.rows.texts.items()}


MACHINE = settings(LAW, max_examples=60, stateful_step_count=20)


def test_any_sequence_of_verbs_equals_a_full_forward_of_each_row() -> None:
    stateful.run_state_machine_as_test(CacheMachine, settings=MACHINE)


# Negative controls: each breaks one method of the cache, given the sound one, and a law notices.


def write_one_slot_off(build: Method) -> Method:
    return lambda self, cache, rows, starts, counts: build(
        self, cache, rows, tuple(start + (start > 0) for start in starts), counts
    )


def count_positions_one_off(build: Method) -> Method:
    def broken(self: CacheView, *given: object) -> None:
        build(self, *given)
        self.positions_BT = (self.positions_BT - 1).clamp(min=0)

    return broken


def let_padding_be_seen(seen: Method) -> Method:
    return lambda self, window: seen(self, window).any(0, keepdim=True)


def write_the_padding(locate: Method) -> Method:
    def broken(self: CacheView) -> _Index:
        index = locate(self)
        if index.valid is None:
            return index
        blocks_B1 = torch.tensor([[table[0]] for table in self._tables])
        cells = (blocks_B1.expand_as(self.positions_BT).flatten(), self.positions_BT.flatten())
        return replace(index, cells=cells, valid=torch.ones_like(index.valid))

    return broken


def forget_to_copy(fork: Method) -> Method:
    def broken(self: KVCache, row: int) -> int:
        copy = self.allocate()
        self._lengths[copy] = self.length(row)
        return copy

    return broken


def do_nothing(method: Method) -> Method:
    return lambda self, *given: None


chunked = test_prefill_in_any_chunks_equals_the_whole.hypothesis.inner_test
ragged = test_a_ragged_batch_equals_each_row_alone.hypothesis.inner_test
truncated = test_truncating_equals_never_having_appended.hypothesis.inner_test
forked = test_a_fork_and_its_origin_diverge_like_separate_rows.hypothesis.inner_test
poisoned = test_nan_in_a_row_reaches_neither_neighbours_nor_successors

CHUNKS = [[1, 2], [3], [4, 5]]
RAGGED = [([1, 2, 3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12]), ([5, 5], [1])]


@pytest.mark.parametrize(
    ("owner", "method", "sabotage", "law"),
    [
        (CacheView, "__init__", write_one_slot_off, lambda: chunked("rope", CHUNKS)),
        (CacheView, "__init__", count_positions_one_off, lambda: chunked("learned", CHUNKS)),
        (ForwardPass, "seen", let_padding_be_seen, lambda: ragged("rope", RAGGED, 0, False)),
        (CacheView, "_locate", write_the_padding, lambda: ragged("rope", RAGGED, 0, False)),
        (KVCache, "truncate", do_nothing, lambda: truncated("rope", [1, 2, 3], [4], 2, [5, 6])),
        (KVCache, "fork", forget_to_copy, lambda: forked("rope", [1, 2, 3], [4], [5])),
        (CacheView, "_clear", do_nothing, lambda: poisoned("rope")),
    ],
)
def test_a_broken_cache_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    sabotage: Callable[[Method], Method],
    law: Callable[[], None],
) -> None:
    law()
    monkeypatch.setattr(owner, method, sabotage(getattr(owner, method)))
    with pytest.raises(AssertionError):
        law()


def test_the_machine_finds_a_broken_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "fork", forget_to_copy(KVCache.fork))
    unshrunk = settings(MACHINE, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        stateful.run_state_machine_as_test(CacheMachine, settings=unshrunk)
