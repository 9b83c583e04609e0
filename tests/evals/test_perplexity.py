"""Perplexity: windows add up to what single forwards say of each token, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stepwell.errors import ConfigError, DeviceError, LogitsError, PromptError
from stepwell.evals import perplexity as module
from stepwell.evals.perplexity import AT_ONCE, Window, perplexity, perplexity_of_text, windows
from stepwell.generate.text import TextGenerator
from stepwell.model.config import ModelConfig
from stepwell.model.quantize import quantize_weights
from stepwell.model.transformer import Transformer
from stepwell.native.library import unavailable_reason
from stepwell.text.tokenizer import Tokenizer

SHAPE = ModelConfig(vocab_size=29, context_length=AT_ONCE + 40, width=32, num_layers=2, num_heads=4)
IDS = torch.randint(0, 29, (90,), generator=torch.Generator().manual_seed(1)).tolist()
WINDOWS = [(None, None), (90, 90), (89, 89), (32, 32), (32, 8), (17, 1), (40, 39), (1, 1)]

needs_kernels = pytest.mark.skipif(
    bool(unavailable_reason()), reason="there are no native kernels here"
)


def model_of(**changes) -> Transformer:
    model = Transformer(SHAPE.changed(**changes))
    model.initialize(0)
    return model.eval()


def token_by_token(model, ids, context, stride) -> float:
    """-log p of each token but the first, each by a forward of its own, added in float64."""
    total = 0.0
    for target in range(1, len(ids)):
        late = max(0, -(-(target - context) // stride))  # the first window that reaches it
        read = torch.tensor([ids[late * stride : target]])
        with torch.inference_mode():
            total -= float(model(read)[0, -1].double().log_softmax(-1)[ids[target]])
    return total


@pytest.mark.parametrize(("context", "stride"), WINDOWS)
def test_windows_add_up_to_single_forwards(context, stride):
    model = model_of()
    found = perplexity(model, IDS, context_length=context, stride=stride)
    length = context or SHAPE.context_length
    expected = token_by_token(model, IDS, length, stride or length)
    assert found.num_tokens == 89
    assert found.nats == pytest.approx(expected, rel=1e-5)  # float32
    assert found.nats_per_token == pytest.approx(expected / 89, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected / 89), rel=1e-5)
    assert found.bits_per_byte is None


def test_logits_in_parts_are_those_of_the_whole():
    model, ids = model_of(), (IDS * 4)[: AT_ONCE + 30]
    expected = token_by_token(model, ids, SHAPE.context_length, SHAPE.context_length)
    assert perplexity(model, ids).nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("begin", "scored", "end"), [(1, 0, 0), (0, 1, 0), (0, 0, -1)], ids=["late", "gap", "short"]
)
def test_windows_one_off_would_be_noticed(monkeypatch, begin, scored, end):
    def off(*given):
        for window in windows(*given):
            moved = window._replace(scored=window.scored + scored, end=window.end + end)
            yield moved._replace(begin=window.begin + begin if window.begin else 0)

    monkeypatch.setattr(module, "windows", off)
    model = model_of()
    found = perplexity(model, IDS, context_length=32, stride=8)
    assert found.nats != pytest.approx(token_by_token(model, IDS, 32, 8), rel=1e-5)


def test_every_token_but_the_first_is_scored_once_as_early_as_can_be():
    for count in range(2, 30):
        for context in range(1, 12):
            for stride in range(1, context + 1):
                parts = list(windows(count, context, stride))
                targets = [at + 1 for part in parts for at in range(part.scored, part.end)]
                assert targets == list(range(1, count))
                assert all(part.begin <= part.scored < part.end for part in parts)
                assert all(part.end - part.begin <= context for part in parts)
    assert list(windows(9, 4, 2)) == [
        Window(0, 0, 4),
        Window(2, 4, 6),
        Window(4, 6, 8),
    ]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernels_measure_8_bits_within_a_percent_of_their_floats(dtype):
    model = quantize_weights(model_of(width=128, mlp_width=256).to(dtype))
    ids = (IDS * 4)[: AT_ONCE + 30]
    torch_says = perplexity(model, ids)  # multiplies with the dequantized matrices
    kernels_say = perplexity(model, ids, kernels=True)
    assert kernels_say.perplexity == pytest.approx(torch_says.perplexity, rel=0.01)
    assert kernels_say.nats != torch_says.nats, "they round what they multiply with"
    model.blocks[0].mlp.down.scale.data *= 2
    spoilt = perplexity(model, ids, kernels=True)
    assert spoilt.perplexity != pytest.approx(torch_says.perplexity, rel=0.01)


@needs_kernels
@pytest.mark.parametrize(("context", "stride"), WINDOWS)
def test_the_kernels_read_the_same_windows(context, stride):
    model = model_of()
    options = {"context_length": context, "stride": stride}
    expected = perplexity(model, IDS, **options)
    assert perplexity(model, IDS, kernels=True, **options).nats == pytest.approx(expected.nats)


@pytest.mark.parametrize("roles", [{}, {"bos": "<s>"}], ids=["without", "with beginning"])
def test_bits_per_byte_counts_the_bytes_that_were_predicted(roles):
    tokenizer = Tokenizer.character("aäbc€", roles=roles)
    generator = TextGenerator(model_of(vocab_size=tokenizer.vocab_size), tokenizer)
    text = "äb€caäb"
    found = perplexity_of_text(generator, text)
    whole = len(text.encode())
    assert found.num_bytes == (whole if roles else whole - 2)
    assert found.num_tokens == (7 if roles else 6)
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / found.num_bytes)
    begin = [tokenizer.bos_id] if roles else []
    assert found.nats == perplexity(generator.model, begin + tokenizer.encode(text)).nats


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens():
    model = model_of()
    for parameter in model.parameters():
        parameter.data.zero_()
    assert perplexity(model, IDS).perplexity == pytest.approx(29, rel=1e-5)


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        ([], {}, PromptError, "0 tokens"),
        ([1], {}, PromptError, "1 tokens"),
        ([1, 29], {}, PromptError, "Token id 29"),
        ([1, -1], {}, PromptError, "Token id -1"),
        (IDS, {"context_length": 0}, ConfigError, "context_length is 0"),
        (IDS, {"context_length": 10**4}, ConfigError, "context_length is 10000"),
        (IDS, {"stride": 0}, ConfigError, "stride is 0"),
        (IDS, {"context_length": 8, "stride": 9}, ConfigError, "stride is 9"),
    ],
)
def test_what_cannot_be_measured_is_refused(ids, options, error, message):
    with pytest.raises(error, match=message):
        perplexity(model_of(), ids, **options)


def test_kernels_that_there_are_not_are_refused(monkeypatch):
    with pytest.raises(DeviceError, match="no native kernels"):
        perplexity(model_of().double(), IDS, kernels=True)


def test_logits_that_are_no_numbers_are_no_measurement():
    model = model_of()
    model.final_norm.weight.data.fill_(math.nan)
    with pytest.raises(LogitsError, match="are NaN"):
        perplexity(model, IDS)
