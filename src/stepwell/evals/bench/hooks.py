"""What hooks cost: interventions beside other programs, idle ones, and a layer that is recorded.

Figures count only where the work is the same: a peer's logits of the first step have to be ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from stepwell.errors import PeerError
from stepwell.evals.bench.figures import Row, make_row
from stepwell.evals.bench.hook import Hook, interventions_of, middle_layer
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.turns import Contestant, Turn, rate, take_turns
from stepwell.evals.bench.work import Work
from stepwell.generate.verify import num_equal
from stepwell.model.interventions import ZeroHeads

TOLERANCE: Final = 1e-3
"""Of float32 logits, between programs that sum in different orders."""
ROWS: Final = 16
RECORDING: Final = f"recording, {ROWS} rows"


def hook_works(ours: Ours, plan: BenchPlan) -> list[Work]:
    """Each intervention, and recording, as questions for every contestant."""
    length = plan.prompt_tokens + plan.new_tokens
    works = []
    for case, intervention in interventions_of(ours.model, plan).items():
        under = UnderHook(Hook(intervention), ours, plan)
        works.append(Work("hooks", case, "tokens/s", length, under.figure, under.note))
    kept = Recorded(Hook(layer=middle_layer(ours.model)), plan)
    return [*works, Work("hooks", RECORDING, "tokens/s", length, kept.figure, kept.note)]


@dataclass
class UnderHook:
    """Whole answers under an intervention, held against ours."""

    hook: Hook
    ours: Ours
    plan: BenchPlan
    _ids: dict[tuple[str, int], Sequence[Sequence[int]]] = field(default_factory=dict)
    _distances: dict[str, float] = field(default_factory=dict)

    def figure(self, who: Contestant, seed: int) -> float:
        """Tokens a second of one answer, its prompt included.

        Raises PeerError where the logits of the first step are not ours.
        """
        if seed == 0 and who is not self.ours:
            self._check_logits(who)
        prompt, new = self.plan.prompt_tokens, self.plan.new_tokens
        answer = who.hooked(1, prompt, new, seed, self.hook)
        self._ids[who.name, seed] = answer.ids
        return rate(new, answer.prefill_s + answer.decode_s)

    def note(self, name: str) -> str:
        """How far a peer's logits are from ours, and how many of its tokens are the same."""
        if name not in self._distances:
            return ""
        pairs = [
            (self._ids[self.ours.name, seed], ids)
            for (who, seed), ids in self._ids.items()
            if who == name and (self.ours.name, seed) in self._ids
        ]
        same = sum(num_equal(ours[0], theirs[0]) for ours, theirs in pairs)
        tokens = len(pairs) * self.plan.new_tokens
        return f"logits within {self._distances[name]:.0e}, {same} of {tokens} tokens equal"

    def _check_logits(self, who: Contestant) -> None:
        ours, theirs = (
            torch.tensor(each.logits(self.plan.prompt_tokens, 0, self.hook))
            for each in (self.ours, who)
        )
        if ours.shape != theirs.shape:
            raise PeerError(f"{who.name} has {len(theirs)} logits, expected {len(ours)}.")
        distance = (ours - theirs).abs().max().item()
        if not distance <= TOLERANCE:
            raise PeerError(
                f"{who.name} does other work: logits of its first step are {distance:.2g} away,"
                f" expected at most {TOLERANCE:g}."
            )
        self._distances[who.name] = distance


@dataclass
class Recorded:
    """Decoding many rows while a layer's attention pattern is kept."""

    hook: Hook
    plan: BenchPlan
    _shares: dict[str, list[float]] = field(default_factory=dict)

    def figure(self, who: Contestant, seed: int) -> float:
        """Tokens a second of all rows, while it is kept."""
        prompt, new = self.plan.prompt_tokens, self.plan.new_tokens
        kept, plain = (
            rate(ROWS * (new - 1), who.hooked(ROWS, prompt, new, seed, hook).decode_s)
            for hook in (self.hook, Hook())
        )
        if seed > 0:
            self._shares.setdefault(who.name, []).append(kept / plain)
        return kept

    def note(self, name: str) -> str:
        """What is left of a contestant's speed."""
        shares = self._shares.get(name)
        return f"{statistics.median(shares):.2f} of its speed without" if shares else ""


def hooks(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:
    """Tokens a second with an idle intervention and while recording, against none of it."""
    alone = (
        ("idle", Hook(ZeroHeads({})), "no hooks", 1),
        (RECORDING, Hook(layer=middle_layer(ours.model)), "no recording", ROWS),
    )
    for case, hook, against, rows in alone:
        turns = {
            case: decoding(ours, plan, hook, rows),
            against: decoding(ours, plan, Hook(), rows),
        }
        figures = take_turns(turns, plan)
        sides = (figures[case], against, figures[against])
        yield make_row("hooks", case, subject.name, "tokens/s", *sides)


def decoding(ours: Ours, plan: BenchPlan, hook: Hook, rows: int) -> Turn:
    """A turn that gives tokens a second of so many rows under a hook."""

    def turn(number: int) -> float:
        answer = ours.hooked(rows, plan.prompt_tokens, plan.new_tokens, number, hook)
        return rate(rows * (plan.new_tokens - 1), answer.decode_s)

    return turn
