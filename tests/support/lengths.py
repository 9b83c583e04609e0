"""Examples of many lengths, and small models of the families that read them differently."""

from __future__ import annotations

from collections.abc import Mapping

from stepwell.model.config import ModelConfig
from stepwell.tasks import Example, Task

SMALL = ModelConfig(width=16, num_layers=2, num_heads=4)
FAMILIES: Mapping[str, ModelConfig] = {
    "rotary": SMALL,
    "learned positions": SMALL.changed(position="learned", norm="layer", gated_mlp=False),
    "sliding window": SMALL.changed(sliding_window=3, sliding_layers=(0,)),
    "fewer key heads": SMALL.changed(num_kv_heads=2, tie_embeddings=False),
}


class Sums(Task):
    """Questions of many lengths, the answers of one to six tokens."""

    def example(self, index: int) -> Example:
        rng = self.rng(index)
        number = rng.randrange(10 ** rng.randint(1, 20))
        return Example.completion(f"{number}=", str(number)[: rng.randint(1, 6)], rng.randint(1, 3))
