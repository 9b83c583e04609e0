"""The Transformer as a function of ids: causal, row by row, within its window; and its start."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.errors import DeviceError, PromptError, ShapeError
from stepwell.model.cache import KVCache
from stepwell.model.config import ModelConfig
from stepwell.model.forward import ForwardPass
from stepwell.model.hooks import Hooks
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer

SMALL = ModelConfig(vocab_size=17, context_length=24, width=16, num_layers=3, num_heads=4)
SHAPES: Mapping[str, ModelConfig] = {
    "llama": SMALL,
    "gpt2": SMALL.changed(
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    ),
    "qwen3": SMALL.changed(num_kv_heads=2, qk_norm=True, head_dim=6, tie_embeddings=False),
    "mistral": SMALL.changed(num_kv_heads=1, sliding_window=4, sliding_layers=(0, 1, 2)),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.initialize(seed)
    return model


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SMALL.vocab_size, (rows, length), generator=generator)


def first_change(model: Transformer, ids: Tensor, position: int) -> list[int]:
    """Positions whose logits move by more than float32 noise when one id changes."""
    changed = ids.clone()
    changed[:, position] = (changed[:, position] + 1) % SMALL.vocab_size
    moved = (model(changed) - model(ids)).abs().amax((0, 2)) > 1e-5
    return [int(index) for index in moved.nonzero()]


@every_shape
def test_a_token_changes_nothing_before_it(config: ModelConfig) -> None:
    model, ids = build(config), some_ids(2, 12)
    for position in (0, 5, 11):
        assert first_change(model, ids, position)[0] == position


def test_a_model_that_sees_the_future_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(SMALL), some_ids(2, 12)
    everything = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    monkeypatch.setattr(ForwardPass, "mask", lambda self, window: everything)
    assert first_change(model, ids, 5)[0] == 0


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_reaches_back_its_length_less_one_a_layer(window: int) -> None:
    config = SMALL.changed(sliding_window=window, sliding_layers=(0, 1, 2))
    model, ids = build(config), some_ids(2, 20)
    reach = SMALL.num_layers * (window - 1)
    assert first_change(model, ids, 5) == list(range(5, 5 + reach + 1))


def test_a_window_on_some_layers_leaves_the_others_whole() -> None:
    config = SMALL.changed(sliding_window=1, sliding_layers=(0, 2))
    assert first_change(build(config), some_ids(2, 12), 0) == list(range(12))


@every_shape
def test_a_row_does_not_depend_on_its_neighbours(config: ModelConfig) -> None:
    model, ids = build(config), some_ids(4, 9)
    together = model(ids)
    for row in range(4):
        alone = model(ids[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)  # float32


@every_shape
def test_a_window_as_long_as_the_text_changes_nothing(config: ModelConfig) -> None:
    layers = tuple(range(config.num_layers))
    whole = build(config.changed(sliding_window=None, sliding_layers=()))
    windowed = build(config.changed(sliding_window=9, sliding_layers=layers))
    ids = some_ids(2, 9)
    torch.testing.assert_close(windowed(ids), whole(ids), atol=1e-5, rtol=0)
    assert not torch.allclose(windowed(some_ids(2, 12)), whole(some_ids(2, 12)), atol=1e-3)


@every_shape
def test_the_head_reads_any_selection_of_hidden_states(config: ModelConfig) -> None:
    model, ids = build(config), some_ids(2, 7)
    hidden = model.hidden(ids)
    assert torch.equal(model(ids), model.logits(hidden))
    torch.testing.assert_close(model(ids)[:, -1:], model.logits(hidden[:, -1:]), atol=1e-5, rtol=0)


def test_a_tied_head_is_the_embedding() -> None:
    tied, untied = build(SMALL), build(SMALL.changed(tie_embeddings=False))
    hidden = tied.hidden(some_ids(1, 4))
    assert torch.equal(tied.logits(hidden), F.linear(hidden, tied.embed.weight))
    assert tied.head is None
    assert untied.head is not None
    assert not torch.equal(untied.head.weight, untied.embed.weight)


def test_layer_scaling_divides_the_scores_of_each_layer() -> None:
    """Scaling queries by 1 / (layer + 1) by hand is the same thing."""
    plain = build(SMALL)
    scaled = build(SMALL.changed(scale_attention_by_layer=True))
    with torch.no_grad():
        for layer, block in enumerate(plain.blocks):
            block.attention.q_proj.weight /= layer + 1
    ids = some_ids(2, 9)
    torch.testing.assert_close(scaled(ids), plain(ids), atol=1e-5, rtol=0)


def test_unscaled_attention_is_that_of_queries_times_the_root_of_head_dim() -> None:
    plain, unscaled = build(SMALL), build(SMALL.changed(scale_attention=False))
    with torch.no_grad():
        for block in unscaled.blocks:
            block.attention.q_proj.weight /= SMALL.head_dim**0.5
    ids = some_ids(2, 9)
    torch.testing.assert_close(unscaled(ids), plain(ids), atol=1e-5, rtol=0)


@every_shape
def test_gradient_checkpointing_changes_no_gradient(config: ModelConfig) -> None:
    model, ids = build(config).train(), some_ids(2, 9)
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_gradient_checkpointing_keeps_less_for_the_backward_pass() -> None:
    model, ids = build(SMALL).train(), some_ids(2, 24)
    kept = []
    for model.gradient_checkpointing in (False, True):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor.numel()) or tensor, lambda x: x
        ):
            model(ids)
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


@every_shape
def test_every_parameter_learns(config: ModelConfig) -> None:
    model, ids = build(config), some_ids(4, 24)
    model(ids).square().sum().backward()
    k_bias = {id(block.attention.k_proj.bias) for block in model.blocks}  # cancels in the softmax
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if id(parameter) not in k_bias:
            assert parameter.grad.abs().max() > 1e-4, name


@every_shape
def test_initialize_depends_on_the_seed_alone(config: ModelConfig) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = build(config, seed=3)
        torch.manual_seed(2)
        second = build(config, seed=3)
    other = build(config, seed=4)
    weights = [dict(model.named_parameters()) for model in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["embed.weight"], weights[2]["embed.weight"])


def test_initialize_draws_nothing_from_the_global_generator() -> None:
    model, before = Transformer(SMALL), torch.get_rng_state()
    model.initialize(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_scales_are_those_of_the_docstring() -> None:
    model = build(SMALL.changed(width=128, num_heads=4, head_dim=32, mlp_width=256, qkv_bias=True))
    block = model.blocks[1]
    into_residual = (2 * SMALL.num_layers) ** -0.5
    expected = {
        block.attention.q_proj.weight: 128**-0.5,
        block.attention.o_proj.weight: 128**-0.5 * into_residual,
        block.mlp.up.weight: 128**-0.5,
        block.mlp.down.weight: 256**-0.5 * into_residual,
    }
    for weight, deviation in expected.items():
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.03)
    assert torch.equal(block.attention.q_proj.bias, torch.zeros(128))
    assert torch.equal(block.mlp_norm.weight, torch.ones(128))


def test_an_untrained_model_predicts_almost_uniformly() -> None:
    model = build(ModelConfig(vocab_size=256, width=128, num_layers=4))
    ids = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=1.0)


def test_a_lower_precision_stays_close() -> None:
    model, ids = build(SMALL), some_ids(2, 12)
    half = copy.deepcopy(model).to(torch.bfloat16)
    logits = half(ids)
    assert (half.dtype, logits.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(logits.float(), model(ids), atol=0.1, rtol=0)  # bfloat16: 8 bits


def test_a_copy_shares_nothing() -> None:
    model, ids = build(SMALL), some_ids(1, 5)
    before, twin = model(ids), copy.deepcopy(model)
    twin.initialize(9)
    assert torch.equal(model(ids), before)


def test_ids_must_be_integers_in_rows() -> None:
    model = build(SMALL)
    with pytest.raises(ShapeError, match=r"integers \[rows, tokens\], not torch.int64 \[3\]"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(ShapeError, match="float32"):
        model(torch.zeros(1, 3))


def test_ids_must_fit_the_view() -> None:
    model = build(SMALL)
    cache = model.new_cache(2)
    view = cache.append([cache.allocate(), cache.allocate()], [3, 2])
    with pytest.raises(ShapeError, match=r"\[2, 4\], the cache view expects \[2, 3\]"):
        model(some_ids(2, 4), view=view)


def test_a_text_beyond_the_context_is_refused() -> None:
    model = build(SMALL)
    assert model(some_ids(1, 24)).shape == (1, 24, 17)
    with pytest.raises(PromptError, match="25 tokens do not fit the context of 24") as error:
        model(some_ids(1, 25))
    assert error.value.fix


def test_tensors_on_two_devices_are_a_device_error() -> None:
    model = build(SMALL)
    with pytest.raises(DeviceError, match="ids are on meta, the model is on cpu"):
        model(some_ids(1, 3).to("meta"))
    cache = KVCache(SMALL, 1, device="meta")
    with pytest.raises(DeviceError, match="The cache is on meta, the model is on cpu"):
        model(some_ids(1, 3), view=cache.append([cache.allocate()], [3]))


def test_positions_of_hooked_logits_must_match_the_hidden_states() -> None:
    model = build(SMALL)
    hidden = model.hidden(some_ids(2, 5))
    positions = torch.arange(5).expand(2, 5)
    with pytest.raises(ShapeError, match=r"\[2, 1\] hidden states have \[2, 5\] positions"):
        model.logits(hidden[:, -1:], hooks=Hooks(), places=Places(positions))
