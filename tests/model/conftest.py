"""Small random models of several families, and a recorder for their hook points."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from stepwell.model.config import ModelConfig
from stepwell.model.hooks import POINTS, Heads, Hooks
from stepwell.model.interventions import Intervention
from stepwell.model.places import Places
from stepwell.model.transformer import Transformer

SMALL = ModelConfig(vocab_size=17, context_length=24, width=16, num_layers=2, num_heads=4)
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
    "qwen": SMALL.changed(num_kv_heads=2, qkv_bias=True, head_dim=6, tie_embeddings=False),
    "mistral": SMALL.changed(num_kv_heads=1, sliding_window=4, sliding_layers=(0,)),
}


class Notes:
    """A recorder that keeps everything it is shown at some points."""

    def __init__(self, *points: str) -> None:
        self.points = points or POINTS
        self.seen: dict[tuple[str, int], list[Tensor]] = {}
        self.positions: dict[tuple[str, int], list[Tensor]] = {}

    def wants(self, point: str, layer: int) -> bool:
        return point in self.points

    def heads(self, point: str, layer: int) -> None:
        """All of them."""

    def take(
        self, point: str, layer: int, value: Tensor, places: Places, heads: Heads = None
    ) -> None:
        assert heads is None
        self.seen.setdefault((point, layer), []).append(value.detach().clone())
        self.positions.setdefault((point, layer), []).append(places.positions_BT.clone())

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        (value,) = self.seen[key]
        return value


def build(config: ModelConfig) -> Transformer:
    """A random model, biases and norms included."""
    model = Transformer(config)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(params=SHAPES)
def hooked(request: pytest.FixtureRequest) -> Transformer:
    """A model of each family in turn."""
    return build(SHAPES[request.param])


@pytest.fixture
def llama() -> Transformer:
    """The plainest of them."""
    return build(SMALL)


@pytest.fixture
def notes() -> type[Notes]:
    """The class of recorders."""
    return Notes


@pytest.fixture
def record() -> Callable[..., Notes]:
    """`record(model, ids, *interventions)`: what every point shows in one full pass."""

    def run(model: Transformer, ids: Tensor, *interventions: Intervention) -> Notes:
        taken = Notes()
        with torch.no_grad():
            model(ids, hooks=Hooks(interventions, [taken]))
        return taken

    return run
