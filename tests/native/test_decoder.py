"""The decode kernels: torch's logits, and for each position the same bits in every company."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from stepwell.errors import ConfigError
from stepwell.model import native
from stepwell.model.config import ModelConfig
from stepwell.model.quantize import quantize_weights
from stepwell.model.transformer import Transformer
from stepwell.native import decoder as decoder_module
from stepwell.native import library
from stepwell.native.build import INSTRUCTION_SETS, LIBRARY, note_of
from stepwell.native.decoder import BLOCK, Decoder, Run
from stepwell.native.library import Library, open_library

V, CONTEXT, LENGTH = 61, 160, 150  # three blocks, the last one not full
TOLERANCE = 2e-5  # float32, logits of magnitude 5
STEPS = (1, 40, 2, 3, 70, 1, 4, 29)  # LENGTH in all

GPT2: Mapping[str, Any] = {
    "family": "gpt2",
    "position": "learned",
    "norm": "layer",
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "norm_eps": 1e-5,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-grouped": {"width": 96, "num_heads": 6, "num_kv_heads": 2},
    "llama-multi-query-untied": {
        "width": 50,
        "num_heads": 5,
        "num_kv_heads": 1,
        "mlp_width": 131,
        "tie_embeddings": False,
        "activation": "gelu_tanh",
    },
    "llama-wide-heads": {"width": 64, "num_heads": 2, "head_dim": 256, "norm_eps": 1e-2},
    "llama-narrower-than-a-vector": {"width": 3, "num_heads": 1, "head_dim": 2, "mlp_width": 5},
    "mistral-window": {
        "family": "mistral",
        "width": 48,
        "num_heads": 4,
        "num_kv_heads": 2,
        "num_layers": 3,
        "sliding_window": 37,
        "sliding_layers": (0, 2),
    },
    "mistral-window-of-one": {
        "family": "mistral",
        "width": 32,
        "sliding_window": 1,
        "sliding_layers": (1,),
    },
    "qwen2-biases": {"family": "qwen2", "width": 72, "num_heads": 6, "qkv_bias": True},
    "qwen3-normed-heads": {
        "family": "qwen3",
        "width": 40,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 20,
        "qk_norm": True,
        "mlp_bias": True,
        "activation": "gelu",
    },
    "gpt2": {**GPT2, "width": 36, "num_heads": 4},  # heads of 9 channels
    "gpt2-relu-by-layer": {
        **GPT2,
        "width": 64,
        "activation": "relu",
        "scale_attention_by_layer": True,
        "tie_embeddings": False,
        "mlp_width": 100,
    },
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DROPPED: Mapping[str, Mapping[str, Any]] = {
    "llama-grouped": {"rope_theta": 9_000.0},
    "llama-wide-heads": {"norm_eps": 1e-6},
    "mistral-window": {"sliding_layers": (0,)},
    "mistral-window-of-one": {"sliding_window": 2},
    "qwen2-biases": {"qkv_bias": False},
    "qwen3-normed-heads": {"qk_norm": False},
    "gpt2": {"activation": "gelu"},
    "gpt2-relu-by-layer": {"scale_attention_by_layer": False},
}


@pytest.fixture(scope="session", params=INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The kernels of this installation, in copies: a library has one instruction set at a time."""
    if library.load() is None:
        pytest.skip(f"no native kernels: {library.unavailable_reason()}")
    folder = tmp_path_factory.mktemp(request.param)
    for path in (library.PLACE, note_of(library.PLACE)):
        shutil.copy(path, folder)
    try:
        found = open_library(folder / LIBRARY, request.param)
    except ConfigError as error:
        pytest.skip(error.problem)
    assert isinstance(found, Library)
    return found


@pytest.fixture
def on_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of threads that steps run on."""
    return lambda number: monkeypatch.setattr(decoder_module, "threads", lambda: number)


@cache
def model_of(shape: str, form: str = "float32") -> Transformer:
    """A model with every parameter random, so that no norm or bias is idle."""
    sizes = {"vocab_size": V, "context_length": CONTEXT, "num_layers": 2, **SHAPES[shape]}
    model = Transformer(ModelConfig(**sizes))
    generator = torch.Generator().manual_seed(len(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            scale, mean = (0.2, 1.0) if parameter.dim() == 1 else (parameter.shape[1] ** -0.5, 0.0)
            parameter.copy_(mean + scale * torch.randn(parameter.shape, generator=generator))
    model.attention_implementation = "eager"
    if form == "int8":
        return quantize_weights(model)
    return model.to(DTYPES[form]).eval().requires_grad_(False)


def decoder_of(model: Transformer, kernels: Library) -> Decoder:
    return Decoder(kernels, native._weights(model))


def cache_for(model: Transformer, num_blocks: int, fill: float | None = None) -> Tensor:
    """A cache of random keys and values, as if written earlier, or full of one number."""
    config = model.config
    shape = (num_blocks, config.num_layers, 2, config.num_kv_heads, BLOCK, config.head_dim)
    content = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (content if fill is None else torch.full(shape, fill)).to(model.dtype)


def ids_of(number: int, length: int = LENGTH) -> list[int]:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(number)).tolist()


def in_steps(ids: Sequence[int], table: Sequence[int], sizes: Sequence[int]) -> Iterator[Run]:
    """A text cut into runs of these sizes, with logits wanted everywhere."""
    start = 0
    for size in sizes:
        yield Run(ids[start : start + size], start, table, wanted=size)
        start += size


def decoded(
    decoder: Decoder,
    cache: Tensor,
    table: Sequence[int] = (4, 0, 2),
    sizes: Sequence[int] = STEPS,
) -> Tensor:
    """Logits [LENGTH, V] of one sequence that lies in these blocks, in steps of these sizes."""
    runs = in_steps(ids_of(0), table, sizes)
    return torch.cat([decoder.step([run], cache).logits for run in runs])


@cache
def torch_logits(shape: str, dtype: str = "float32", computed_in: str = "") -> Tensor:
    """The same by torch; `computed_in` is where the weights of `dtype` are multiplied."""
    model = model_of(shape, dtype)
    if computed_in:
        higher = Transformer(model.config).to(DTYPES[computed_in])
        higher.load_state_dict(model.state_dict())
        model = higher
    with torch.inference_mode():
        return model(torch.tensor([ids_of(0)]))[0].float()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_torch(shape: str, kernels: Library) -> None:
    model = model_of(shape)
    found = decoded(decoder_of(model, kernels), cache_for(model, 5, torch.nan))
    torch.testing.assert_close(found, torch_logits(shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("shape", "changes"), DROPPED.items(), ids=DROPPED)
def test_each_special_field_is_seen_by_this_comparison(
    shape: str, changes: Mapping[str, Any], kernels: Library
) -> None:
    right = model_of(shape)
    wrong = Transformer(right.config.changed(**changes))
    wrong.load_state_dict(right.state_dict(), strict=False)
    found = decoded(decoder_of(wrong, kernels), cache_for(wrong, 5, torch.nan))
    assert float((found - torch_logits(shape)).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_errs_no_more_than_torch_does(shape: str, kernels: Library) -> None:
    model, exact = model_of(shape, "bfloat16"), torch_logits(shape, "bfloat16", "float32")
    ours = decoded(decoder_of(model, kernels), cache_for(model, 5, torch.nan)) - exact
    theirs = torch_logits(shape, "bfloat16") - exact
    assert ours.square().mean().sqrt() < theirs.square().mean().sqrt()
    assert ours.abs().max() < 1.5 * theirs.abs().max()


def needle_in(step: Callable[[list[Run]], Tensor], size: int) -> Tensor:
    """The logits of one position in a step of this size, among positions of other sequences."""
    ids = ids_of(3, size)
    runs = [Run([token], 11 * index % 120, [index, 0], 1) for index, token in enumerate(ids)]
    place = 7 * size % len(runs)
    runs[place] = Run([5], 77, [45, 41], 1)
    return step(runs)[place]


def sizes_that_move_a_bit(step: Callable[[list[Run]], Tensor]) -> list[int]:
    alone = needle_in(step, 1)
    return [size for size in range(2, 41) if not torch.equal(needle_in(step, size), alone)]


BITS = ["llama-grouped", "mistral-window", "gpt2"]
FORMS = [*DTYPES, "int8"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", BITS)
def test_company_moves_no_bit(shape: str, form: str, kernels: Library) -> None:
    model = model_of(shape, form)
    decoder, past = decoder_of(model, kernels), cache_for(model, 46)
    assert sizes_that_move_a_bit(lambda runs: decoder.step(runs, past).logits) == []


def test_a_sum_split_by_the_number_of_rows_moves_bits() -> None:
    weight_VC = torch.randn(V, 96, generator=torch.Generator().manual_seed(0))
    x_VC = weight_VC.flip(0)

    def step(runs: list[Run]) -> Tensor:
        parts = min(len(runs), 4)
        x_RC = x_VC[[run.ids[0] for run in runs]]
        products = (x_RC[:, None] * weight_VC).chunk(parts, dim=-1)
        return torch.stack([part.cumsum(-1)[..., -1] for part in products]).sum(0)

    assert sizes_that_move_a_bit(step)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", BITS)
def test_neither_steps_nor_blocks_nor_what_lies_there_move_a_bit(
    shape: str, form: str, kernels: Library, on_threads: Callable[[int], None]
) -> None:
    model = model_of(shape, form)
    decoder = decoder_of(model, kernels)
    on_threads(1)
    one_by_one = decoded(decoder, cache_for(model, 3, 0.0), (0, 1, 2), [1] * LENGTH)
    on_threads(2)
    for sizes, table, fill in (
        (STEPS, (0, 1, 2), torch.nan),
        ([LENGTH], (2, 0, 1), torch.inf),
        ([LENGTH - 1, 1], (7, 3, 5), None),
    ):
        found = decoded(decoder, cache_for(model, 8, fill), table, sizes)
        assert torch.equal(found, one_by_one)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_not_a_number_leaves_the_others(form: str, kernels: Library) -> None:
    model = model_of("llama-grouped", form)
    decoder, past = decoder_of(model, kernels), cache_for(model, 6)
    runs = [Run([token], 40, [index], 1) for index, token in enumerate(ids_of(2, 6))]
    sound = decoder.step(runs, past)
    past[2, 0, 0, 1, 3] = torch.nan
    broken = decoder.step(runs, past)
    assert broken.sound == [True, True, False, True, True, True]
    assert broken.logits[2].isnan().all()
    for row in (0, 1, 3, 4, 5):
        assert torch.equal(broken.logits[row], sound.logits[row])


def test_threads_with_a_decoder_each_do_not_disturb_each_other(
    kernels: Library, on_threads: Callable[[int], None]
) -> None:
    model = model_of("llama-grouped", "bfloat16")
    expected = decoded(decoder_of(model, kernels), cache_for(model, 5))
    on_threads(2)

    def work(_: int) -> bool:
        return torch.equal(decoded(decoder_of(model, kernels), cache_for(model, 5)), expected)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(18)))
