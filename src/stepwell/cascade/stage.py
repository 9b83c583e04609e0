"""A stage: anything that answers prompts and says how likely each of its tokens was.

`Stage` is the protocol, `LocalStage` a model of ours. Stages are numbered from 1, smallest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from stepwell.cascade.ladder import LadderConfig
from stepwell.errors import CascadeError
from stepwell.generate.batch import Progress
from stepwell.generate.request import Completion
from stepwell.generate.text import TextGenerator
from stepwell.model.fingerprint import model_fingerprint


class Stage(Protocol):
    """What the cascade asks of a stage."""

    name: str

    @property
    def fingerprint(self) -> str:
        """The identity of what samples: stages that differ in it have noise of their own."""

    def answer(
        self, prompts: Sequence[str], *, progress: Progress | None = None, **sampling: Any
    ) -> list[Completion]:
        """One completion for each prompt, in order, with the log-probability of every token.

        One that could not be finished has the finish_reason "error".
        """

    def flops(self, completion: Completion) -> float:
        """Floating-point operations that an answer took, its prompt included."""


class LocalStage:
    """A model directory run by our own engine."""

    def __init__(self, name: str, generator: TextGenerator) -> None:
        self.name = name
        self.generator = generator

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.generator.model)

    @classmethod
    def load(
        cls, name: str, directory: str | Path, *, max_rows: int = 64, **options: Any
    ) -> LocalStage:
        """The stage that runs a model directory, up to `max_rows` prompts at once.

        `options` are those of TextGenerator.load. Raises CascadeError where there is no directory.
        """
        if not Path(directory).is_dir():
            raise CascadeError(
                f"Stage {name!r} has no model in {directory}.",
                fix="correct `model:` in the ladder file, or train the stage.",
            )
        return cls(name, TextGenerator.load(directory, max_rows=max_rows, **options))

    def answer(
        self, prompts: Sequence[str], *, progress: Progress | None = None, **sampling: Any
    ) -> list[Completion]:
        asked = {**sampling, "n": 1, "logprobs": sampling.get("logprobs") or 0}
        batches = self.generator.generate_batch(prompts, progress=progress, **asked)
        return [choices[0] for choices in batches]

    def flops(self, completion: Completion) -> float:
        config = self.generator.model.config
        # The last token is sampled but never fed back.
        tokens = completion.usage.total_tokens - 1
        return config.flops(tokens, context=tokens // 2)


def load_stages(config: LadderConfig, root: str | Path, **options: Any) -> list[LocalStage]:
    """The stages of a ladder, ready to answer; `root` is the ladder file's directory.

    `options` are those of TextGenerator.load. Raises CascadeError where a model is not there.
    """
    rows = config.serving.max_rows
    return [
        LocalStage.load(
            stage.name,
            Path(root) / stage.model,
            max_rows=rows,
            **{**options, "weights": options.get("weights") or stage.weights},
        )
        for stage in config.stages
    ]
