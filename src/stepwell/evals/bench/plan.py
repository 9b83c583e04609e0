"""What a benchmark measures: questions, lengths, repetitions. Plain values; loads nothing heavy."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, DirectoryPath, Field, FilePath

from stepwell.config import Config

Question = Literal[
    "decode",
    "prefill",
    "batch",
    "load",
    "bandwidth",
    "verify",
    "speculation",
    "hooks",
    "cache",
    "train",
]
Weights = Literal["bf16", "int8", "fp32"]
MODELS: Final = ("14m", "110m", "443m")
"""The models with random weights; their shapes are in `sizes`."""
WEIGHTS: Final[tuple[Weights, ...]] = ("bf16", "int8")
"""The formats in which decoding is timed."""
FORMATS: Final[tuple[Weights, ...]] = (*WEIGHTS, "fp32")
"""Those and the one in which hooks are, the order in which a model is measured."""

QUESTIONS: Final[dict[Question, str]] = {
    "decode": "tokens a second behind a prompt, for 1 row and for 16, with bf16 and int8 weights",
    "prefill": "tokens a second of one prompt, up to the first token of its answer",
    "batch": "tokens a second of many requests of mixed lengths, all submitted at once",
    "load": "seconds from the files to a first token, and the most memory that it takes",
    "bandwidth": "the share of the memory's read bandwidth that decoding one row reaches",
    "verify": "a step over 4 and 8 tokens of one sequence against a step over 1",
    "speculation": "tokens a second of whole answers with a draft, against the model alone",
    "hooks": "tokens a second under interventions, idle ones too, and while attention is recorded",
    "cache": "answers a second that are all found in a response cache, against none found",
    "train": "tokens a second of training steps with bf16 products, and their share of the machine",
}


class BenchPlan(Config):
    """How much is measured, and how often."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    repetitions: int = Field(5, ge=1)
    """Turns of each contestant, after one that does not count; 5 or more for figures to publish."""
    prompt_tokens: int = Field(64, ge=1)
    """Tokens of the prompt behind which tokens are decoded."""
    new_tokens: int = Field(64, ge=2)
    """Tokens that are decoded."""
    prefill_tokens: int = Field(512, ge=1)
    """Tokens of the prompt whose reading is timed."""
    requests: int = Field(64, ge=1)
    """Requests of the question `batch`."""
    read_mib: int = Field(2048, ge=1)
    """MiB of the read-only pass that decoding is compared with; far more than the caches hold."""
    prompts: int = Field(8, ge=1)
    """Prompts of the questions `speculation` and `cache`."""
    answer_tokens: int = Field(128, ge=2)
    """Tokens of each of these prompts, and of the answer to it."""
    train_rows: int = Field(8, ge=1)
    """Rows of a training step."""
    train_tokens: int = Field(256, ge=1)
    """Tokens of each of these rows."""
    text: FilePath | None = None
    """The text that these prompts are taken from; without it they are random ids."""
    draft: DirectoryPath | None = None
    """The smaller model that drafts in `speculation`."""
    pause_s: float = Field(0.3, ge=0)
    """Seconds between two turns, in which the threads of the one before come to rest."""

    @property
    def mixed_requests(self) -> tuple[tuple[int, int], ...]:
        """Lengths of prompt and answer of the requests of `batch`, the same in every run."""
        source = random.Random(0)
        longest = 4 * self.prompt_tokens, 2 * self.new_tokens
        drawn = [
            [source.randint(most // 8, most) for most in longest] for _ in range(self.requests)
        ]
        return tuple((max(1, prompt), max(1, new)) for prompt, new in drawn)


@dataclass(frozen=True)
class Subject:
    """A model that is measured: its name in the table, and the directory that holds it."""

    name: str
    directory: Path
