"""Laws of hooks: what is recorded or changed while generating is that of a full forward of the row.

The reference is one forward of torch over the whole text, with attention computed step by step and
without a cache. Tolerance 1e-5 (float32) of the greatest value at a point, or of 1; where strict,
bits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from stepwell.generate import engine as engine_module
from stepwell.generate import row_hooks
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.executor import Chunk
from stepwell.generate.record import RecordedRow
from stepwell.generate.request import FinishedEvent, Request, SamplingParams, TokenEvent
from stepwell.generate.sequence import Handle
from stepwell.generate.tape import Record
from stepwell.model.config import ModelConfig
from stepwell.model.hooks import POINTS, Heads, Hooks
from stepwell.model.interventions import Intervention, Steer, ZeroHeads
from stepwell.model.places import Places, Tokens
from stepwell.model.transformer import Transformer
from stepwell.native.library import load
from tests.support.interventions import some_intervention, some_vector

V, CONTEXT, LENGTH = 23, 220, 12
GROUPED = ModelConfig(
    vocab_size=V,
    context_length=CONTEXT,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    tie_embeddings=False,
)
SHAPES = {
    "grouped": GROUPED,
    "window": GROUPED.changed(family="mistral", sliding_window=20, sliding_layers=(0,)),
    "learned": GROUPED.changed(position="learned", norm="layer", num_kv_heads=4, mlp_bias=True),
}
LENGTHS = [1, 2, 70, 9, 129, 3, 26, 64]
EVERYTHING = Record(points=POINTS)
both_executors = pytest.mark.usefixtures("both_executors")


@cache
def model_of(shape: str) -> Transformer:
    """A random float32 model."""
    model = Transformer(SHAPES[shape]).requires_grad_(False)
    model.initialize(3)
    return model


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, V, (length,), generator=generator).tolist())


class Answer:
    """What came of a request: tokens, their log-probabilities, what was recorded."""

    def __init__(self, handle: Handle) -> None:
        *events, end = list(handle)
        assert isinstance(end, FinishedEvent)
        assert end.error is None, end.error
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        self.tokens = [event.token_id for event in tokens]
        self.logprobs = [event.logprob for event in tokens]
        self.usage, self.executors = end.usage, end.executors
        self.recording = end.recording
        self.text = (*handle.request.prompt_ids, *self.tokens[:-1])

    @property
    def row(self) -> RecordedRow:
        assert self.recording is not None
        return self.recording

    def same_bits(self, other: Answer) -> bool:
        pairs = zip(self.row.values.values(), other.row.values.values(), strict=True)
        return (
            self.tokens == other.tokens
            and self.logprobs == other.logprobs
            and all(torch.equal(*pair) for pair in pairs)
        )


def asked(
    ids: Sequence[int],
    interventions: Sequence[Intervention] = (),
    record: Record | None = EVERYTHING,
    **params: Any,
) -> Request:
    given = {"max_new_tokens": LENGTH, "logprobs": 0, "seed": 5, "ignore_eos": True, **params}
    return Request(tuple(ids), SamplingParams(**given), tuple(interventions), record=record)


def run(shape: str, requests: Sequence[Request], **options: Any) -> list[Answer]:
    """The answers of one engine to requests that it gets together."""
    draft = options.pop("draft", None)
    engine = InferenceEngine(model_of(shape), **{"max_rows": 4, **options})
    return [Answer(each) for each in [engine.submit(each, draft=draft) for each in requests]]


class Everything:
    """A recorder that keeps all of a single row, written apart from the one under test."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int], Tensor] = {}

    def wants(self, point: str, layer: int) -> bool:
        return True

    def heads(self, point: str, layer: int) -> Heads:
        return None

    def take(self, point: str, layer: int, value: Tensor, places: Places, heads: Heads) -> None:
        assert heads is None
        assert len(value) == 1
        self.seen[point, layer] = value[0].clone()


def full_forward(
    shape: str, text: Sequence[int], interventions: Sequence[Intervention], num_prompt: int
) -> dict[tuple[str, int], Tensor]:
    """What passes every point in one forward over a text."""
    model, seen = model_of(shape), Everything()
    model.attention_implementation = "eager"
    hooks = Hooks(interventions, [seen], prompt_lengths=[num_prompt])
    model(torch.tensor([text]), hooks=hooks)
    model.attention_implementation = "auto"
    return seen.seen


def distance(answer: Answer, expected: dict[tuple[str, int], Tensor]) -> float:
    """The greatest difference at any point between a recording and a full forward."""
    found = answer.row.values
    assert found.keys() == expected.keys()
    return max(apart(found[key], expected[key]) for key in expected)


def apart(found: Tensor, expected: Tensor) -> float:
    """The greatest difference, in units of the greatest value where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def farthest(shape: str, requests: Sequence[Request], answers: Sequence[Answer]) -> float:
    """The greatest distance of any of the answers from its full forward."""
    return max(
        distance(
            answer,
            full_forward(shape, answer.text, request.interventions, len(request.prompt_ids)),
        )
        for request, answer in zip(requests, answers, strict=True)
    )


def some_requests(shape: str, seed: int, **params: Any) -> list[Request]:
    """Prompts of all lengths, most of them with one to three interventions of their own."""
    chance, config = random.Random(seed), SHAPES[shape]
    return [
        asked(
            prompt(length, seed),
            [some_intervention(chance, config) for _ in range(chance.choice([0, 1, 1, 2, 3]))],
            **params,
        )
        for seed, length in enumerate(LENGTHS, start=seed)
    ]


MODES: dict[str, dict[str, Any]] = {
    "together": {},
    "few rows": {"max_rows": 2},
    "scarce": {"kv_cache_bytes": 4 * 64 * 2 * 2 * 2 * 8 * 4 * 2},
    "strict": {"strict": True},
    "drafts": {"draft": "lookup"},
    "strict, drafts": {"strict": True, "draft": "lookup"},
}


@both_executors
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_recorded_and_changed_is_that_of_a_full_forward(shape: str, mode: str) -> None:
    requests = some_requests(shape, seed=len(mode))
    answers = run(shape, requests, **MODES[mode])
    assert farthest(shape, requests, answers) < 1e-5


@both_executors
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_it_is_so_however_the_prompt_is_cut(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", chunk)
    requests = some_requests("grouped", seed=chunk)
    assert farthest("grouped", requests, run("grouped", requests)) < 1e-5


@pytest.mark.slow
@both_executors
@pytest.mark.parametrize("seed", range(100, 140))
def test_it_is_so_for_many_random_interventions(seed: int) -> None:
    requests = some_requests("grouped", seed=seed)
    assert farthest("grouped", requests, run("grouped", requests, strict=seed % 2 == 0)) < 1e-5


def test_an_intervention_that_everyone_gets_breaks_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests, chosen, first = some_requests("grouped", seed=1), engine_module._chunk, []

    def shared(*given: Any) -> Chunk:
        chunk: Chunk = chosen(*given)
        first.append(chunk.hooks.edits)
        mixed = row_hooks.RowHooks(first[-1] or first[0], chunk.hooks.num_prompt, chunk.hooks.tape)
        return chunk._replace(hooks=mixed)

    requests[0] = asked(prompt(3), [ZeroHeads({0: [0, 1, 2, 3]})])
    monkeypatch.setattr(engine_module, "_chunk", shared)
    assert farthest("grouped", requests, run("grouped", requests)) > 1e-3


@pytest.mark.skipif(load() is None, reason="there are no kernels")
def test_a_hook_that_reads_one_position_off_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, found = [asked(prompt(9))], row_hooks._keep

    def late(*given: Any) -> Iterator[Any]:
        return (touch._replace(first_row=touch.first_row + 1) for touch in found(*given))

    monkeypatch.setattr(row_hooks, "_keep", late)
    assert farthest("grouped", requests, run("grouped", requests)) > 1e-3


# Strict: bits


@both_executors
@pytest.mark.parametrize("shape", SHAPES)
def test_in_strict_mode_company_moves_no_bit(shape: str) -> None:
    requests = some_requests(shape, seed=40)
    together = run(shape, requests, strict=True)
    alone = [run(shape, [each], strict=True)[0] for each in requests]
    assert [one.same_bits(other) for one, other in zip(together, alone, strict=True)] == [
        True for _ in requests
    ]
    others = run(shape, some_requests(shape, seed=41), strict=True)
    assert not together[2].same_bits(others[2])


@both_executors
def test_in_strict_mode_a_neighbour_that_is_changed_or_read_moves_no_bit() -> None:
    plain = asked(prompt(70), record=None)
    changed = asked(prompt(26, 1), [Steer(layer=0, vector=some_vector(random.Random(1), 32))])
    [alone] = run("grouped", [plain], strict=True)
    for company in ([changed], [asked(prompt(26, 1))], some_requests("grouped", seed=7)):
        found, *_ = run("grouped", [plain, *company], strict=True)
        assert (found.tokens, found.logprobs) == (alone.tokens, alone.logprobs)


@both_executors
@pytest.mark.parametrize("record", [EVERYTHING, Record(points=["logits"], positions="last")])
def test_recording_moves_no_bit(record: Record) -> None:
    for interventions in ([], [ZeroHeads({0: [1]})]):
        seen, unseen = (
            run("grouped", [asked(prompt(70), interventions, each)], strict=True)[0]
            for each in (record, None)
        )
        assert (seen.tokens, seen.logprobs) == (unseen.tokens, unseen.logprobs)


# The prefix cache


def by_prompt() -> list[Intervention]:
    vector = some_vector(random.Random(2), 32)
    where = ["all", "prompt", "generated", "last", (-3,), (70,), Tokens(tokens=(3, 4))]
    return [Steer(layer=0, vector=vector, positions=positions) for positions in where]


def warm_and_cold(interventions: Sequence[Intervention], strict: bool) -> Iterator[list[Answer]]:
    """Answers to the same requests by an engine that knows other texts, and by new ones.

    The later prompts go on where earlier answers ended, as a conversation does.
    """
    engine = InferenceEngine(model_of("grouped"), strict=strict)
    begin, record = prompt(100), Record(points=["logits"], positions="last")
    for each in [*interventions, *interventions]:
        first = Answer(engine.submit(asked(begin, [each], None, max_new_tokens=60)))
        longer = asked((*begin, *first.tokens, 1, 2), [each], record)
        again = Answer(engine.submit(longer))
        assert again.usage.cached_tokens in (0, 64, 128)
        yield [again, *run("grouped", [longer], strict=strict)]


@both_executors
@pytest.mark.parametrize("strict", [False, True])
def test_warm_is_cold(strict: bool) -> None:
    for warm, cold in warm_and_cold(by_prompt(), strict):
        if strict:
            assert warm.same_bits(cold)
        else:
            [(_, one)], [(_, other)] = warm.row.values.items(), cold.row.values.items()
            assert apart(one, other) < 1e-5


@both_executors
@pytest.mark.parametrize("forgotten", ["interventions", "length of the prompt"])
def test_a_key_that_forgets_something_breaks_the_law(
    forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Handle.forward_key.func  # type: ignore[attr-defined]

    def key(handle: Handle) -> Any:
        found = names(handle)
        is_named = isinstance(found[-1], tuple) if found else True
        return () if forgotten == "interventions" else found if is_named else found[:-1]

    monkeypatch.setattr(Handle, "forward_key", property(key))
    pairs = list(warm_and_cold(by_prompt(), strict=True))
    assert not all(warm.same_bits(cold) for warm, cold in pairs)


@both_executors
def test_a_prompt_that_is_recorded_is_computed_though_it_is_known() -> None:
    engine = InferenceEngine(model_of("grouped"))
    ids = prompt(150)
    Answer(engine.submit(asked(ids, record=None)))
    cases: list[tuple[Any, int]] = [("all", 0), ("generated", 128), ((70, 90), 64), ("last", 128)]
    for positions, cached in cases:
        request = asked(ids, record=Record(points=["attention.pattern"], positions=positions))
        answer = Answer(engine.submit(request))
        assert answer.usage.cached_tokens == cached
        whole = full_forward("grouped", answer.text, (), 150)
        for key, value in answer.row.values.items():
            expected = whole[key][:, list(answer.row.positions)]
            assert apart(value, expected) < 1e-5


# What is chosen


CHOICES: dict[str, Callable[[int, int], list[int]]] = {
    "all": lambda _, end: list(range(end)),
    "prompt": lambda prompt, _: list(range(prompt)),
    "generated": lambda prompt, end: list(range(prompt, end)),
    "last": lambda prompt, _: [prompt - 1],
}


@both_executors
@pytest.mark.parametrize("positions", CHOICES)
@pytest.mark.parametrize("heads", [[3, 1], [0]])
def test_only_what_is_chosen_is_kept(positions: Any, heads: list[int]) -> None:
    points = ["attention.heads", "attention.pattern", "mlp.output"]
    record = Record(points=points, layers=[1], heads=heads, positions=positions)
    [answer] = run("grouped", [asked(prompt(26), record=record)])
    chosen = CHOICES[positions](26, len(answer.text))
    assert list(answer.row.positions) == chosen
    whole = full_forward("grouped", answer.text, (), 26)
    assert set(answer.row.values) == {(point, 1) for point in points}
    expected = {
        "attention.heads": whole["attention.heads", 1][chosen][:, heads],
        "attention.pattern": whole["attention.pattern", 1][heads][:, chosen],
        "mlp.output": whole["mlp.output", 1][chosen],
    }
    for (point, _), value in answer.row.values.items():
        assert apart(value, expected[point]) < 1e-5


@both_executors
def test_every_choice_of_a_request_has_its_own_recording() -> None:
    request = asked(prompt(70), n=3, temperature=2.0)
    engine = InferenceEngine(model_of("grouped"))
    handle = engine.submit(request)
    texts: dict[int, list[int]] = {choice: [] for choice in range(3)}
    rows: dict[int, RecordedRow] = {}
    for event in handle:
        if isinstance(event, TokenEvent):
            texts[event.choice].append(event.token_id)
        elif event.recording is not None:
            rows[event.choice] = event.recording
    assert len({tuple(text) for text in texts.values()}) == 3
    for choice, row in rows.items():
        expected = full_forward("grouped", (*request.prompt_ids, *texts[choice][:-1]), (), 70)
        for key, value in row.values.items():
            assert apart(value, expected[key]) < 1e-5


def test_the_answer_says_what_computed_it() -> None:
    [answer] = run("grouped", [asked(prompt(9), [ZeroHeads({0: [1]})])])
    assert answer.executors == (("torch",) if load() is None else ("native",))
