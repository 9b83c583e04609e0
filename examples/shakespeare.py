"""Running text by character, measured in bits.

Any text file in UTF-8 will do; the usual one is the "tiny shakespeare" of Andrej Karpathy's
char-rnn (data/tinyshakespeare/input.txt in its repository):

    python -m examples.shakespeare --path input.txt --preset gpt2-11m --run-name shakespeare
    stepwell generate runs/shakespeare "ROMEO:" --temperature 0.8 --stream
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pydantic

from stepwell.cli.train import train_main
from stepwell.tasks import Batch, Corpus
from stepwell.train.trainer import Trainer


class Shakespeare(Corpus):
    """Windows of a text, one token a character; every next character is trained."""

    path: Path = pydantic.Field(default=Path("input.txt"), description="a text file in UTF-8")
    window: int = pydantic.Field(default=128, ge=1, le=2**20, description="characters in a row")


class BitsTrainer(Trainer):
    """Reports bits a token, which can be compared between texts and with compressors."""

    def metrics(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """The usual metrics, and the loss in bits."""
        found = super().metrics(batch)
        total, count = found["loss"]
        return {**found, "bits_per_token": (total / math.log(2), count)}


if __name__ == "__main__":
    sys.exit(train_main(Shakespeare, BitsTrainer))
