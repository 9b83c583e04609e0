"""4-bit weights: the levels that are stored, and that the layer multiplies with what they say."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stepwell.errors import ConfigError, DeviceError, WeightsError
from stepwell.generate.engine import InferenceEngine
from stepwell.generate.request import Request, SamplingParams
from stepwell.model import quantize4
from stepwell.model.config import ModelConfig
from stepwell.model.fingerprint import model_fingerprint
from stepwell.model.native import native_decoder
from stepwell.model.quantize import quantize_weights
from stepwell.model.quantize4 import GROUP, STRIP, FourBitLinear
from stepwell.model.transformer import Transformer
from stepwell.model.weights import load_model, save_model

LEVELS = torch.tensor(  # QLoRA, appendix E
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
QWEN = {"qkv_bias": True, "family": "qwen2"}
IDS = torch.arange(20)[None]
SIZES = [(7, 1), (5, GROUP - 1), (8, GROUP), (3, GROUP + 1), (2 + STRIP // 192, 192)]


def random_model(**changes) -> Transformer:
    values = {"vocab_size": 31, "width": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    model = Transformer(ModelConfig(**{**values, **changes}))
    model.initialize(0)
    return model.eval()


def values_of(layer: FourBitLinear) -> torch.Tensor:
    """The matrix that a layer's bytes stand for, the higher half of a byte first, float32."""
    stored = layer.weight.long()
    levels = LEVELS[torch.stack((stored >> 4, stored & 15), -1)].view(len(stored), -1, GROUP)
    return (levels * layer.scale[..., None]).view(len(stored), -1)[:, : layer.in_features]


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """Each weight as the nearest level of its group, in float64."""
    groups = nn.functional.pad(weight.double(), (0, -weight.shape[1] % GROUP))
    groups = groups.view(len(weight), -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True)
    shares = groups / largest.clamp_min(1e-30)
    chosen = (shares[..., None] - LEVELS.double()).abs().argmin(-1)
    return (LEVELS.double()[chosen] * largest).view(len(weight), -1)[:, : weight.shape[1]]


@pytest.fixture(scope="module")
def _installed() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra 'quantization' is not installed")


needs_library = pytest.mark.usefixtures("_installed")


@needs_library
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_weight_is_the_nearest_level_of_its_group(size):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    found = values_of(FourBitLinear(weight, None))
    assert found.allclose(nearest(weight).float(), rtol=1e-5, atol=1e-6)
    assert found.allclose(weight, atol=0.01) == (size[1] == 1)  # the largest is kept


@needs_library
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_multiplies_with_what_its_bytes_say(size, dtype):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(size, generator=generator).to(dtype), torch.ones(size[0]).to(dtype)
    x = torch.randn(2, 3, size[1], generator=generator).to(dtype)
    layer = FourBitLinear(weight, bias)
    expected = nn.functional.linear(x, values_of(layer).to(dtype), bias)
    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert layer(x).allclose(expected, rtol=close, atol=close)
    assert layer(x[:1, :1]).allclose(expected[:1, :1], rtol=close, atol=close)
    layer.scale.data *= 1.5
    assert not layer(x).allclose(expected, rtol=close, atol=close)


@needs_library
def test_every_matrix_but_embedding_and_head_is_in_4_bits():
    for model in (random_model(), random_model(tie_embeddings=False)):
        head = model.head
        quantize_weights(model, "int4")
        assert sum(isinstance(part, FourBitLinear) for part in model.modules()) == 2 * 7
        assert model.head is head
        assert {type(part) for part in model.modules()} & {nn.Linear} == (
            {nn.Linear} if head else set()
        )


@needs_library
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, QWEN], ids=str)
def test_a_model_is_rounded_to_4_bits_as_it_is_loaded(tmp_path, changes):
    save_model(random_model(**changes), tmp_path)
    loaded = load_model(tmp_path, weights="int4")
    plain, twin = (load_model(tmp_path, weights="bf16") for _ in range(2))
    for name, layer in loaded.named_modules():
        if isinstance(layer, FourBitLinear):
            twin.get_parameter(f"{name}.weight").data = values_of(layer).bfloat16()
    with torch.inference_mode():
        exact, expected, found = plain(IDS), twin(IDS), loaded(IDS)
        assert found.equal(quantize_weights(plain, "int4")(IDS))
    assert found.allclose(expected, rtol=0.05, atol=0.05)  # bfloat16
    assert not found.allclose(exact, rtol=0.05, atol=0.05)
    assert loaded.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@needs_library
def test_torch_computes_what_no_kernel_reads():
    model = quantize_weights(random_model().bfloat16(), "int4")
    assert native_decoder(model) is None
    ids = [1, 2, 3]
    for _ in range(4):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    sampling = SamplingParams(temperature=0.0, max_new_tokens=4, ignore_eos=True)
    asked = Request(prompt_ids=(1, 2, 3), sampling=sampling)
    *events, _ = InferenceEngine(model).submit(asked)
    assert [event.token_id for event in events] == ids[3:]


@needs_library
def test_4_bits_are_another_model_and_are_not_saved(tmp_path):
    prints = {
        model_fingerprint(random_model()),
        model_fingerprint(quantize_weights(random_model())),
        model_fingerprint(four := quantize_weights(random_model(), "int4")),
    }
    assert len(prints) == 3
    with pytest.raises(WeightsError, match="4-bit weights"):
        save_model(four, tmp_path / "out")


@needs_library
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_as_the_cpu_does(tmp_path):
    save_model(random_model(width=128), tmp_path)
    one, other = (load_model(tmp_path, weights="int4", device=name) for name in ("cpu", "cuda"))
    for name, parameter in one.named_parameters():
        assert parameter.equal(other.get_parameter(name).cpu()), name
    with torch.inference_mode():
        found = other(IDS.cuda()).cpu().float()
        assert (found - one(IDS).float()).std() < 0.02 * found.std()  # bfloat16


def test_another_dtype_is_a_contradiction(tmp_path):
    save_model(random_model(), tmp_path)
    with pytest.raises(ConfigError, match="'int4', but dtype is float32"):
        load_model(tmp_path, weights="int4", dtype="float32")


def test_without_the_library_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    save_model(random_model(), tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="not installed") as refused:
        load_model(tmp_path, weights="int4")
    assert "stepwell[quantization]" in refused.value.fix


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_a_device_that_the_library_refuses_is_named_before_weights_are_read(
    tmp_path, monkeypatch, error
):
    def refuse(*_args, **_options):
        raise error("no kernel\nand a long story")

    save_model(random_model(), tmp_path)
    library = SimpleNamespace(functional=SimpleNamespace(quantize_4bit=refuse))
    monkeypatch.setattr(quantize4, "import_module", lambda name: library)
    monkeypatch.setattr("stepwell.model.weights.open_checkpoint", pytest.fail)
    with pytest.raises(DeviceError, match=r"refuses on cpu: no kernel\nFix") as refused:
        load_model(tmp_path, weights="int4")
    assert 'weights="int8"' in refused.value.fix
