"""What a profile holds: seconds by phase and part, and what follows from them. Plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

PHASES: Final = {
    "tokenizing": "the prompt's text to ids",
    "prefill": "forwards over the prompt",
    "decoding": "forwards over one token each",
    "sampling": "logits to a token",
    "detokenizing": "tokens to pieces of text",
    "rest": "the engine: admission, bookkeeping of the cache, events",
}
"""The phases of an answer, in their order, and what is done in them."""

PARTS: Final = ("embedding", "norms", "attention", "mlp", "head")
"""The parts of a model that are timed; attention with its projections and its cache."""


@dataclass(frozen=True)
class Phase:
    """What one phase took. share: of the whole. tokens: those it was about.

    computed_by: the executors that ran in it, where it has forwards.
    """

    name: str
    seconds: float
    share: float
    tokens: int
    computed_by: tuple[str, ...] = ()

    @property
    def per_token_s(self) -> float | None:
        """Seconds a token; None where there was no token."""
        return self.seconds / self.tokens if self.tokens else None


@dataclass(frozen=True)
class Part:
    """What a part of the model took in the forwards of a phase. share: of these forwards."""

    phase: str
    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class InferenceProfile:
    """Where the time of one answer went. All times are seconds.

    phases: of the run whose time is in the middle of `runs`; they add up to `seconds`. parts: of a
    run of its own, for the phases that torch computed; those of a phase add up to its forwards.
    gaps: between one token and the next. cached_tokens: how much of the prompt the next request
    with it finds in the prefix cache; cached_first_token_s: its time to the first token, None where
    it finds nothing. weight_bytes: what decoding a token reads. memory_gb_per_s: of a read-only
    pass on the same threads, None where it was not measured.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    runs: tuple[float, ...]
    phases: tuple[Phase, ...]
    parts: tuple[Part, ...]
    first_token_s: float
    gaps: tuple[float, ...]
    cached_tokens: int
    cached_first_token_s: float | None
    weight_bytes: int
    memory_gb_per_s: float | None
    device: str
    threads: int

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt a second, of the time of its forwards."""
        return self.prompt_tokens / self.phase("prefill").seconds

    @property
    def decode_rate(self) -> float | None:
        """Tokens behind the first a second, as they come; None where there are none."""
        return len(self.gaps) / sum(self.gaps) if self.gaps else None

    @property
    def median_gap_s(self) -> float | None:
        """Time from one token to the next, in the middle; None where there is one token."""
        return float(np.median(self.gaps)) if self.gaps else None

    @property
    def p95_gap_s(self) -> float | None:
        """Time from one token to the next that 95 of 100 do not exceed."""
        return float(np.percentile(self.gaps, 95)) if self.gaps else None

    @property
    def weights_gb_per_s(self) -> float | None:
        """GB of weights that decoding reads a second of its forwards."""
        decoding = self.phase("decoding")
        if not decoding.tokens:
            return None
        return self.weight_bytes * decoding.tokens / decoding.seconds / 1e9

    @property
    def memory_share(self) -> float | None:
        """Speed of reading weights over that of the read-only pass; above 1 they are in caches."""
        if self.weights_gb_per_s is None or self.memory_gb_per_s is None:
            return None
        return self.weights_gb_per_s / self.memory_gb_per_s

    def plain(self) -> dict[str, Any]:
        """Everything, also what follows from it, as JSON can hold it."""
        derived = {name: getattr(self, name) for name in DERIVED}
        phases = [
            {**dataclasses.asdict(phase), "per_token_s": phase.per_token_s} for phase in self.phases
        ]
        return {**dataclasses.asdict(self), "phases": phases, **derived}

    def write_html(self, path: str | Path, *, command: str = "") -> Path:
        """The path of a self-contained page with this profile; its footer names `command`."""
        from stepwell.evals.profile.view import page

        return page(self, command).write(path)

    def write_png(self, path: str | Path, *, dark: bool = False) -> Path:
        """The path of a picture of the phases."""
        from stepwell.evals.profile.view import phases_chart
        from stepwell.report import write_png

        return write_png(phases_chart(self), path, dark=dark)

    def __str__(self) -> str:
        from stepwell.evals.profile.view import text

        return text(self)


DERIVED: Final = (
    *("prefill_rate", "decode_rate", "median_gap_s", "p95_gap_s"),
    *("weights_gb_per_s", "memory_share"),
)


def phases_of(
    seconds: Mapping[str, float],
    computed_by: Mapping[str, list[str]],
    *,
    prompt: int,
    completion: int,
) -> tuple[Phase, ...]:
    """The phases of a run from seconds by key: a phase, or PHASE/PART for a part of its forwards.

    prompt and completion are numbers of tokens.
    """
    about = {"tokenizing": prompt, "prefill": prompt, "decoding": completion - 1}
    whole = sum(seconds.values())
    taken = dict.fromkeys(PHASES, 0.0)
    for key, took in seconds.items():
        taken[key.partition("/")[0]] += took
    return tuple(
        Phase(name, took, took / whole, about.get(name, completion), (*computed_by.get(name, ()),))
        for name, took in taken.items()
    )


def parts_of_phases(seconds: Mapping[str, float]) -> tuple[Part, ...]:
    """The parts of the phases that have any, from seconds by key as for `phases_of`.

    What a phase has under its own name is the rest of its forwards.
    """
    found = []
    for phase in PHASES:
        taken = {part: seconds.get(f"{phase}/{part}", 0.0) for part in PARTS}
        whole = sum(taken.values())
        if whole:
            taken["rest"] = seconds[phase]
            whole += seconds[phase]
            found += [Part(phase, part, took, took / whole) for part, took in taken.items()]
    return tuple(found)
