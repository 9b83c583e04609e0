"""Shapes of models: what follows from what, what is refused, and what a shape costs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepwell.errors import ConfigError
from stepwell.model.config import ModelConfig, RopeScaling
from stepwell.model.presets import GPT2_VOCABULARY, presets
from stepwell.model.transformer import Transformer

ODD = ModelConfig(vocab_size=23, context_length=12, width=24, num_layers=3, num_heads=4)
VARIANTS = {
    **presets,
    "plain": ODD,
    "biased": ODD.changed(qkv_bias=True, output_bias=True, mlp_bias=True),
    "plain mlp": ODD.changed(gated_mlp=False, mlp_bias=True, mlp_width=7),
    "grouped": ODD.changed(num_kv_heads=2, head_dim=10, qkv_bias=True),
    "qk-norm": ODD.changed(num_kv_heads=1, qk_norm=True),
    "layer norm with qk-norm": ODD.changed(norm="layer", qk_norm=True),
    "learned, untied": ODD.changed(position="learned", tie_embeddings=False),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def on_meta(config: ModelConfig) -> Transformer:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return Transformer(config)


@every_variant
def test_num_parameters_is_the_count_of_the_module(config: ModelConfig) -> None:
    counted = sum(parameter.numel() for parameter in on_meta(config).parameters())
    assert config.num_parameters == counted


@every_variant
def test_flops_are_those_that_torch_counts(config: ModelConfig) -> None:
    ids = torch.zeros(3, 12, dtype=torch.long, device="meta")
    model = on_meta(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids)
    assert config.flops(num_tokens=36, context=12) == counter.get_total_flops()


def test_flops_of_a_decoded_token_are_those_that_torch_counts() -> None:
    config = VARIANTS["grouped"]
    model = Transformer(config)
    cache = model.new_cache(1)
    row = cache.allocate()
    model(torch.zeros(1, 9, dtype=torch.long), view=cache.append([row], [9]))
    view = cache.append([row], [1])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, dtype=torch.long), view=view)
    assert config.flops(num_tokens=1, context=10) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "shape", "without_embeddings", "with_embeddings"),
    [
        ("gpt2-11m", (384, 6, 6, 512), 11, 30),
        ("gpt2-25m", (512, 8, 8, 512), 25, 51),
        ("gpt2-85m", (768, 12, 12, 512), 85, 124),
        ("llama-505m", (1024, 24, 16, 4096), 403, 505),
        ("qwen2.5-0.5b", (896, 24, 14, 32_768), 358, 494),
    ],
)
def test_presets_have_the_size_of_their_names(
    name: str, shape: tuple[int, ...], without_embeddings: int, with_embeddings: int
) -> None:
    config = presets[name]
    assert shape == (config.width, config.num_layers, config.num_heads, config.context_length)
    embeddings = config.vocab_size * config.width * (1 if config.tie_embeddings else 2)
    embeddings += config.context_length * config.width * (config.position == "learned")
    assert round((config.num_parameters - embeddings) / 1e6) == without_embeddings
    assert round(config.num_parameters / 1e6) == with_embeddings


def test_presets_are_what_they_are_asked_for() -> None:
    gpt2, llama, large = presets["gpt2-85m"], presets["llama-80m"], presets["llama-505m"]
    assert (gpt2.vocab_size, gpt2.mlp_width, gpt2.norm) == (GPT2_VOCABULARY, 3072, "layer")
    assert (llama.width, llama.mlp_width, llama.num_layers, llama.num_heads) == (512, 1536, 16, 16)
    assert (large.vocab_size, large.mlp_width, large.rope_theta) == (50_000, 4096, 50_000.0)
    assert not large.tie_embeddings
    assert presets["qwen2.5-0.5b"].num_kv_heads == 2
    with pytest.raises(TypeError):
        presets["mine"] = gpt2  # type: ignore[index]


def test_sizes_that_are_left_out_follow_from_the_others() -> None:
    config = ModelConfig(width=96, num_heads=6)
    assert (config.num_kv_heads, config.head_dim, config.mlp_width) == (6, 16, 256)
    assert ModelConfig(width=96, gated_mlp=False).mlp_width == 384


@pytest.mark.parametrize("width", ["96", 96.0])
def test_sizes_follow_from_values_that_are_spelled_otherwise(width: object) -> None:
    assert ModelConfig(width=width, num_heads="6") == ModelConfig(width=96, num_heads=6)
    assert ModelConfig(gated_mlp="false") == ModelConfig(gated_mlp=False)


def test_a_given_size_is_kept() -> None:
    config = ModelConfig(width=96, num_heads=6, num_kv_heads=2, head_dim=32, mlp_width=100)
    assert (config.num_kv_heads, config.head_dim, config.mlp_width) == (2, 32, 100)


def test_resizing_derives_anew_only_what_had_been_derived() -> None:
    tiny = presets["tiny"].resized(width=128, num_heads=4)
    assert tiny == presets["tiny"].changed(
        width=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_width=344
    )
    qwen = presets["qwen2.5-0.5b"].resized(vocab_size=300, num_layers=2)
    assert (qwen.num_kv_heads, qwen.head_dim, qwen.mlp_width) == (2, 64, 4864)
    assert presets["llama-80m"].resized(num_layers=2).mlp_width == 1536
    assert presets["tiny"].resized() == presets["tiny"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
        ({"head_dim": 7}, "even head_dim, not 7"),
        ({"sliding_window": 4}, "given together"),
        ({"sliding_layers": (0,)}, "given together"),
        ({"sliding_window": 4, "sliding_layers": (0, 2)}, "outside 0..1"),
        ({"width": 0}, "ModelConfig.width is 0: Input should be greater than or equal to 1."),
        ({"num_heads": 0}, "ModelConfig.num_heads is 0"),
        ({"widht": 64}, "no field 'widht'. Did you mean 'width'?"),
        ({"norm": "batch"}, "ModelConfig.norm is 'batch'"),
        (
            {"rope_scaling": {"kind": "yarn", "factor": 2}},
            "ModelConfig.rope_scaling is {'kind': 'yarn', 'factor': 2}: "
            "yarn rope scaling needs original_context_length.",
        ),
        (
            {"rope_scaling": {"kind": "linear", "fctor": 2}},
            "no field 'rope_scaling.fctor'. Did you mean 'factor'?",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_a_config_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(**values)
    assert message in str(error.value)


def test_learned_positions_take_an_odd_head_dim() -> None:
    assert ModelConfig(position="learned", head_dim=7).head_dim == 7


@pytest.mark.parametrize(
    ("given", "expected"), [(None, ()), (5, (5,)), ((5, 6), (5, 6)), ([7], (7,))]
)
def test_eos_ids_are_every_id_that_ends_a_text(given: object, expected: tuple[int, ...]) -> None:
    assert ModelConfig(eos_id=given).eos_ids == expected


@every_variant
def test_a_shape_survives_its_file(config: ModelConfig) -> None:
    scaled = config.changed(
        rope_scaling=RopeScaling(kind="llama3", factor=8, original_context_length=64)
    )
    for shape in (config, scaled):
        assert ModelConfig.parse(shape.plain()) == shape
        assert ModelConfig.parse(shape.plain()).fingerprint == shape.fingerprint
    assert scaled.fingerprint != config.fingerprint
