"""A stage that our own engine runs: a model directory, its cache, and its lane of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stepwell.cascade.stage import Draft, Observe, Reply
from stepwell.errors import CascadeError
from stepwell.generate.batch import Progress
from stepwell.generate.finished_draft import FinishedDraft
from stepwell.generate.pins import Pin
from stepwell.generate.request import Completion
from stepwell.generate.tape import Record
from stepwell.generate.text import TextGenerator
from stepwell.model.fingerprint import model_fingerprint

ENTROPY_TOKENS = 32
NOTHING = Observe()
LAST_TOKENS = Record(points=("logits",), positions=tuple(range(-ENTROPY_TOKENS, 0)))
SCORED_AT_ONCE = 16


class LocalStage:
    """A model directory run by our own engine."""

    def __init__(self, name: str, generator: TextGenerator) -> None:
        self.name = name
        self.generator = generator

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.generator.model)

    @cached_property
    def vocabulary(self) -> str:
        return self.generator.tokenizer.fingerprint

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

    def generate(
        self,
        prompts: Sequence[str],
        *,
        observe: Observe = NOTHING,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """One reply to each prompt; see Stage."""
        return self._reply(prompts, None, observe, deadline_s, progress, sampling)

    def verify(
        self,
        prompts: Sequence[str],
        drafts: Sequence[Draft],
        *,
        observe: Observe = NOTHING,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """The replies of `generate` from drafts; one of another vocabulary is encoded anew."""
        own = [FinishedDraft(self._ids(draft)) for draft in drafts]
        replies = self._reply(prompts, own, observe, deadline_s, progress, sampling)
        return [replace(reply, mode="verified") for reply in replies]

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, ...]]:
        """The log-probability of each token of an answer, in forwards over prompt and answer."""
        begun = self.generator.encode(prompts)
        ends = self.generator.tokenizer.encode_batch(answers)
        pairs = list(zip(begun, ends, strict=True))
        found: list[tuple[float, ...]] = []
        for start in range(0, len(pairs), SCORED_AT_ONCE):
            found += self._scored(pairs[start : start + SCORED_AT_ONCE])
        return found

    def flops(self, completion: Completion) -> float:
        """Those of all tokens but the last, which is sampled and never fed back."""
        usage = completion.usage
        tokens = usage.total_tokens + usage.rejected_tokens - 1
        return self.generator.model.config.flops(tokens, context=tokens // 2)

    def forget(self) -> None:
        """Drop the prefix cache, pins included."""
        self.generator.engine.forget_prompts()

    def close(self) -> None:
        """Nothing: the model goes when nobody holds it."""

    def num_cached(self, prompt: str) -> int:
        """How many of a prompt's tokens need not be read again."""
        [ids] = self.generator.encode([prompt])
        return self.generator.engine.pins.num_cached(ids)

    def pin(self, prompt: str, completion: Completion) -> Pin:
        """Keep the keys and values of a prompt and its answer, to go on from there."""
        [ids] = self.generator.encode([prompt])
        return self.generator.engine.pins.add([*ids, *completion.token_ids])

    def unpin(self, pin: Pin) -> None:
        """Let them go."""
        self.generator.engine.pins.drop(pin)

    def _reply(
        self,
        prompts: Sequence[str],
        drafts: Sequence[FinishedDraft] | None,
        observe: Observe,
        deadline_s: float | None,
        progress: Progress | None,
        sampling: dict[str, Any],
    ) -> list[Reply]:
        batches = self.generator.generate_batch(
            prompts,
            draft=drafts,
            record=LAST_TOKENS if observe.prompt_entropy else None,
            deadline_s=deadline_s,
            progress=progress,
            **{**sampling, "n": 1, "logprobs": observe.top_logprobs},
        )
        return [_reply(completion) for [completion] in batches]

    def _ids(self, draft: Draft) -> tuple[int, ...]:
        """A draft in ids of this stage's vocabulary."""
        if draft.vocabulary == self.vocabulary:
            return draft.token_ids
        return tuple(self.generator.tokenizer.encode(draft.text))

    @torch.inference_mode()
    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, ...]]:
        model = self.generator.model
        rows = [[*prompt, *answer] for prompt, answer in pairs]
        width = max(map(len, rows))
        ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        logprob_BTV = model(ids_BT.to(model.device)).float().log_softmax(-1)
        return [
            tuple(
                float(logprob_BTV[row, len(prompt) - 1 + place, token])
                for place, token in enumerate(answer)
            )
            for row, (prompt, answer) in enumerate(pairs)
        ]


def _reply(completion: Completion) -> Reply:
    """A completion as a reply, with what its recording says of the prompt."""
    recording = completion.recording
    if recording is None:
        return Reply(completion, top_logprobs=completion.top_logprobs)
    logprob_NV = recording["logits", -1][0].log_softmax(-1)
    entropy_N = -(logprob_NV.exp() * logprob_NV).sum(-1)
    return Reply(
        replace(completion, recording=None),
        top_logprobs=completion.top_logprobs,
        prompt_entropy=float(entropy_N.mean()),
    )
