"""A ladder of scripted stages: what it answers, and how surely, is known before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stepwell.cascade.collect import Collected
    from stepwell.cascade.costs import Costs
    from stepwell.cascade.fitted import Fitted
    from stepwell.cascade.ladder import LadderConfig
    from stepwell.cascade.pipeline import Cascade
    from stepwell.cascade.stage import Reply
    from stepwell.generate.request import Completion

NAMES = ("small", "middle", "large")
REACH = (0.35, 0.6, 0.95)  # the difficulty, from 0 to 1, at which a stage is right half of the time
SPLITS = ("predictor", "calibration", "test")
BATCH = 16
FEATURES = ("logprobs", "length", "agreement")


@pytest.fixture(autouse=True)
def _no_inherited_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed does not depend on the terminal that the tests were started from."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _own_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is remembered in the cache folder of who runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model that has learnt to chat; to be read only."""
    from support.chats import train_chat

    return train_chat(tmp_path_factory.mktemp("chat"))


class ScriptedStage:
    """A stage whose answers were prepared, one for each prompt. Notes what it was asked."""

    def __init__(self, name: str, script: dict[str, Completion], size: float = 1.0) -> None:
        self.name, self.script, self.size = name, script, size
        self.asked: list[tuple[list[str], dict[str, Any]]] = []
        self.drafts: list[list[Any]] = []
        self.closed = False

    @property
    def fingerprint(self) -> str:
        return f"weights of {self.name}"

    @property
    def vocabulary(self) -> str:
        return "words"

    def generate(
        self,
        prompts: Sequence[str],
        *,
        observe: Any = None,
        deadline_s: float | None = None,
        progress: Any = None,
        **sampling: Any,
    ) -> list[Reply]:
        from stepwell.cascade.stage import Reply

        self.asked.append((list(prompts), sampling))
        answers = [self.script[prompt] for prompt in prompts]
        if progress is not None:
            progress.update(len(answers), sum(len(answer.token_ids) for answer in answers))
        return [Reply(answer) for answer in answers]

    def verify(self, prompts: Sequence[str], drafts: Sequence[Any], **asked: Any) -> list[Reply]:
        self.drafts.append(list(drafts))
        return [replace(reply, mode="verified") for reply in self.generate(prompts, **asked)]

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, ...]]:
        return [self.script[prompt].logprobs for prompt in prompts]

    def flops(self, completion: Completion) -> float:
        return self.size * completion.usage.total_tokens

    def forget(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def completion(text: str, logprobs: Sequence[float], reason: Any = "length") -> Completion:
    """An answer with the log-probabilities of its tokens."""
    from stepwell.generate.request import Completion, Usage

    tokens = tuple(range(len(logprobs)))
    return Completion(text, tokens, reason, Usage(2, len(tokens)), tuple(logprobs))


@dataclass(frozen=True)
class World:
    """Prompts of all difficulties, and what three stages answer to each.

    Right answers have rather higher log-probabilities. Stages agree where both are right, and now
    and then where both are wrong.
    """

    count: int
    scripts: tuple[dict[str, Completion], ...]
    weights: tuple[float, ...] = field(repr=False)

    @classmethod
    def make(cls, count: int = 900, seed: int = 0) -> World:
        import numpy as np

        rng = np.random.default_rng(seed)
        scripts: tuple[dict[str, Completion], ...] = ({}, {}, {})
        for number in range(count):
            difficulty = rng.random()
            for reach, script in zip(REACH, scripts, strict=True):
                chance = 1 / (1 + np.exp(-9 * (reach - difficulty)))
                right = rng.random() < chance
                sure = 0.8 * right + chance + rng.normal(scale=0.5)
                logprobs = -np.exp(rng.normal(scale=0.5, size=rng.integers(1, 6)) - 1 - 1.5 * sure)
                text = "right" if right else f"wrong {rng.integers(3)}"
                script[f"prompt {number}"] = completion(text, logprobs.tolist())
        return cls(count, scripts, tuple(rng.uniform(0.5, 2.0, size=count)))

    def prompts(self, split: str = "test") -> list[str]:
        """The prompts of a split, dealt out in turn."""
        start = SPLITS.index(split)
        return [f"prompt {number}" for number in range(start, self.count, len(SPLITS))]

    def stages(self) -> list[ScriptedStage]:
        """New stages that have not been asked yet."""
        sizes = zip(NAMES, self.scripts, (1.0, 4.0, 20.0), strict=True)
        return [ScriptedStage(*each) for each in sizes]

    def config(self, **policy: Any) -> LadderConfig:
        """A ladder file's content; `policy` are fields of that part of it."""
        from stepwell.cascade.ladder import LadderConfig

        stages = [{"name": name, "model": f"models/{name}"} for name in NAMES]
        values = {
            "stages": stages,
            "policy": {"lambda": 1.0, **policy},
            "predictor": {"features": FEATURES},
        }
        return LadderConfig.parse({**values, "serving": {"max_rows": BATCH}})

    def costs(self, *seconds: float, drafted: float = 1.0) -> Costs:
        """What each stage costs in full batches, 0.1, 0.3 and 1 where nothing else is given.

        drafted: the share of it that a draft takes which stays whole; one that does not takes 1.2.
        """
        from stepwell.cascade.costs import Costs, StageCost

        batched = seconds or (0.1, 0.3, 1.0)
        costs = zip(NAMES, (0.05, 0.2, 1.0), batched, (0.4, 0.5, 1.0), strict=True)
        return Costs(
            tuple(
                StageCost(
                    name,
                    flops,
                    {str(BATCH): full, "1": alone},
                    {str(BATCH): full * drafted, "1": alone},
                    {str(BATCH): full * (1.2 if drafted < 1 else 1.0), "1": alone},
                )
                for name, flops, full, alone in costs
            )
        )

    def data(self, split: str) -> Collected:
        """All stages' answers to the prompts of a split."""
        from stepwell.cascade.beliefs.features import select
        from stepwell.cascade.collect import collect
        from stepwell.tasks.questions import Question

        weights = self.weights[SPLITS.index(split) :: len(SPLITS)]
        questions = [
            Question(prompt, "right", "right".__eq__, weight=weight)
            for prompt, weight in zip(self.prompts(split), weights, strict=True)
        ]
        return collect(self.stages(), questions, features=select(FEATURES))

    @cached_property
    def fitted(self) -> Fitted:
        """What is fitted for the ladder, for lambdas that are given."""
        from stepwell.cascade.fitted import Fitted

        data = self.data("predictor"), self.data("calibration")
        return Fitted.fit(self.config(), self.stages(), *data, self.costs())

    def cascade(
        self, *seconds: float, stages: Any = None, drafted: float = 1.0, **policy: Any
    ) -> Cascade:
        """The cascade, with costs and parts of the policy changed."""
        from stepwell.cascade.pipeline import Cascade

        fitted = replace(self.fitted, costs=self.costs(*seconds, drafted=drafted))
        return Cascade(self.config(**policy), stages or self.stages(), fitted)


@pytest.fixture(scope="session")
def world() -> World:
    """A ladder of scripted stages; `fitted` on two thirds of its prompts."""
    return World.make()


@pytest.fixture(scope="session")
def answer() -> Callable[..., Completion]:
    """Makes a prepared answer: its text, its log-probabilities, why it ended."""
    return completion


@pytest.fixture(scope="session")
def scripted() -> Callable[..., ScriptedStage]:
    """Makes a stage of prepared answers: its name, an answer for each prompt, its size."""
    return ScriptedStage
