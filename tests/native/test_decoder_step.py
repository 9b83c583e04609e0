"""A step of the decode kernels: what it says of its rows, what it refuses, and where it runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stepwell.errors import CacheError, PromptError, ShapeError, StepwellError
from stepwell.model.config import ModelConfig
from stepwell.model.native import native_decoder
from stepwell.model.transformer import Transformer
from stepwell.native import decoder as decoder_module
from stepwell.native import library
from stepwell.native.decoder import BLOCK, Decoder, Run

V, CONTEXT = 700, 160  # three blocks, the last one not full
CONFIG = ModelConfig(
    vocab_size=V, context_length=CONTEXT, width=40, num_kv_heads=2, tie_embeddings=False
)


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if library.load() is None:
        pytest.skip(f"no native kernels: {library.unavailable_reason()}")


@pytest.fixture
def model() -> Transformer:
    """A model of its own for each test, which may write to the weights."""
    made = Transformer(CONFIG).requires_grad_(False)
    made.initialize(0)
    return made


@pytest.fixture
def decoder(model: Transformer) -> Decoder:
    """The kernels on that model."""
    found = native_decoder(model)
    assert found is not None
    return found


@pytest.fixture
def past() -> Tensor:
    """A cache of three blocks with random keys and values, as if written earlier."""
    return torch.randn(3, 2, 2, 2, BLOCK, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one thread, and on two."""
    monkeypatch.setattr(decoder_module, "threads", lambda: request.param)


def rows_of(count: int, wanted: int | None = None) -> list[Run]:
    """The first positions of one sequence; logits are wanted of all, or of the last `wanted`."""
    ids = [7 * place % V for place in range(count)]
    return [Run(ids, 0, [2, 0, 1], count if wanted is None else wanted)]


@pytest.mark.usefixtures("_threads")
def test_the_best_is_the_lowest_id_of_the_highest_logit(
    model: Transformer, decoder: Decoder, past: Tensor
) -> None:
    weight_VC = model.head.weight
    weight_VC.copy_(weight_VC[torch.arange(V) * 5 % 9])  # nine different logits, each many times
    found = decoder.step(rows_of(CONTEXT), past)
    logits = found.logits.numpy()
    assert (logits == logits.max(1, keepdims=True)).sum(1).min() > 70
    assert found.best == logits.argmax(1).tolist()  # numpy's is the first of equals
    assert found.sound == [True] * CONTEXT


@pytest.mark.usefixtures("_threads")
def test_logits_without_a_finite_highest_are_unsound(
    model: Transformer, decoder: Decoder, past: Tensor
) -> None:
    weight_VC = model.head.weight
    weight_VC[650] = 0
    weight_VC[650, 0] = torch.inf
    found = decoder.step(rows_of(40), past)
    infinite = found.logits[:, 650]
    assert infinite.isinf().all()
    assert found.sound == (infinite < 0).tolist()
    assert 0 < sum(found.sound) < 40
    unsound = [best for best, sound in zip(found.best, found.sound, strict=True) if not sound]
    assert set(unsound) == {650}
    weight_VC[17] = torch.nan
    assert decoder.step(rows_of(40), past).sound == [False] * 40
    weight_VC.zero_()
    weight_VC[:, 0] = torch.inf
    assert decoder.step(rows_of(40), past).sound == [False] * 40  # some are -inf everywhere


def test_logits_come_for_those_that_are_wanted_and_all_are_kept(
    decoder: Decoder, past: Tensor
) -> None:
    (whole,) = rows_of(90)
    expected = decoder.step([whole], past.clone())
    silent = decoder.step(rows_of(50, wanted=0), past)
    assert (silent.logits.shape, silent.best, silent.sound) == ((0, V), [], [])
    rest = [
        whole._replace(ids=whole.ids[at : at + 4], start=at, wanted=2) for at in range(50, 90, 4)
    ]
    some = decoder.step(rest, past)
    places = [at + back for at in range(50, 90, 4) for back in (2, 3)]
    assert torch.equal(some.logits, expected.logits[places])
    assert some.best == [expected.best[place] for place in places]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("window", [None, 5, 70])
def test_a_long_run_has_the_bits_of_its_positions_one_by_one(window: int | None) -> None:
    """More rows than go through the layers together, in tiles of neighbours and apart."""
    windowed = {"sliding_window": window, "sliding_layers": (1,)} if window else {}
    model = Transformer(CONFIG.changed(context_length=600, **windowed))
    model.requires_grad_(False).initialize(1)
    ids = torch.randint(0, V, (530,), generator=torch.Generator().manual_seed(2)).tolist()
    table = [3, 0, 8, 5, 1, 7, 2, 6, 4]
    caches = torch.zeros(2, 9, 2, 2, 2, BLOCK, 10)
    decoder = native_decoder(model)
    together = decoder.step([Run(ids, 0, table, len(ids))], caches[0])
    alone = [decoder.step([Run([id], at, table, 1)], caches[1]) for at, id in enumerate(ids)]
    assert torch.equal(together.logits, torch.cat([step.logits for step in alone]))
    assert torch.equal(*caches)


def test_a_step_of_no_rows_does_nothing(decoder: Decoder, past: Tensor) -> None:
    before = past.clone()
    for _ in range(2):  # before there are buffers, and with them
        assert decoder.step([], past).logits.shape == (0, V)
        decoder.step(rows_of(1), past.clone())
    assert torch.equal(past, before)


@pytest.mark.parametrize(
    ("run", "error", "words"),
    [
        (Run([0], 128, [0, 1]), CacheError, "Position 128 lies beyond 2 blocks of 64"),
        (Run([0], 160, [0, 1, 2]), CacheError, "the model's 160"),
        (Run([0], -1, [0]), CacheError, "Position -1"),
        (Run([0] * 100, 30, [0, 1]), CacheError, "Position 129 lies beyond 2 blocks"),
        (Run([3, 4, V, 5], 0, [0]), PromptError, "Token id 700"),
        (Run([0], 0, []), CacheError, "beyond 0 blocks"),
        (Run([0], 70, [0, 3]), CacheError, r"\[0, 3\] are not all in a cache of 3"),
        (Run([0], 70, [-1, 2]), CacheError, "not all in a cache"),
        (Run([V], 0, [0]), PromptError, "Token id 700 is not in the model's vocabulary of 700"),
        (Run([-1], 0, [0]), PromptError, "Token id -1"),
    ],
)
def test_what_lies_beyond_is_an_error_and_nothing_is_written(
    run: Run, error: type[StepwellError], words: str, decoder: Decoder, past: Tensor
) -> None:
    before = past.clone()
    with pytest.raises(error, match=words):
        decoder.step([Run([1], 5, [0]), run], past)
    assert torch.equal(past, before)


def test_a_table_may_be_longer_than_its_row_needs(decoder: Decoder, past: Tensor) -> None:
    long = decoder.step([Run([1], 5, [1, 0, 2, 2, 1], 1)], past)
    assert torch.equal(long.logits, decoder.step([Run([1], 5, [1], 1)], past).logits)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda past: past.bfloat16(),
        lambda past: past[..., :-1].contiguous(),
        lambda past: past[:, :1].contiguous(),
        lambda past: past.transpose(4, 5).contiguous().transpose(4, 5),
        lambda past: past.to("meta"),
    ],
    ids=["dtype", "width", "layers", "strides", "device"],
)
def test_a_cache_of_another_kind_is_an_error(
    spoil: Callable[[Tensor], Tensor], decoder: Decoder, past: Tensor
) -> None:
    with pytest.raises(ShapeError, match=r"expected \[blocks, 2, 2, 2, 64, 10\] in torch.float32"):
        decoder.step(rows_of(1), spoil(past))


def test_logits_are_float32_whatever_torch_makes_by_default(decoder: Decoder, past: Tensor) -> None:
    expected = decoder.step(rows_of(1), past).logits
    torch.set_default_dtype(torch.float64)
    try:
        found = decoder.step(rows_of(1), past).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="others flush nothing")
@pytest.mark.usefixtures("_threads")
def test_subnormal_numbers_are_flushed_inside_and_nowhere_else(
    model: Transformer, decoder: Decoder, past: Tensor
) -> None:
    model.embed.weight.fill_(1e-39)  # the norm would make 1e-36 of it
    found = decoder.step(rows_of(1), past).logits
    assert torch.equal(found, torch.zeros(1, V))
    assert (torch.full((1_000_000,), 1e-39) * 1).all()  # on every thread of the pool


FORK = """
import hashlib, os, torch
from stepwell.model.config import ModelConfig
from stepwell.model.quantize import quantize_weights
from stepwell.model.native import native_decoder
from stepwell.model.transformer import Transformer
from stepwell.native import decoder as decoder_module
from stepwell.native.decoder import Run
torch.set_num_threads(2)
decoder_module.WORTH_A_THREAD = 1
model = Transformer(ModelConfig(width=96, num_heads=6, num_kv_heads=2))
model.initialize(0)
decoder = native_decoder(model)

def told():
    cache = torch.zeros(1, 2, 2, 2, 64, 16)
    steps = [decoder.step([Run([7 * place], place, [0], 1)], cache) for place in range(30)]
    bits = torch.cat([step.logits for step in steps]).numpy().tobytes()
    os.write(1, f"{hashlib.sha256(bits).hexdigest()}\\n".encode())

told()
child = os.fork()
told()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_the_same_bits() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        timeout=60, text=True, capture_output=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    first, *others = ended.stdout.split()
    assert others == [first, first]
