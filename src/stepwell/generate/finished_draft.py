"""Drafting from a whole answer that somebody else wrote, such as a smaller model.

Owns how an answer in the making is aligned with such a draft. As long as both say the same, the
draft's next tokens are proposed; where they part, the place in the draft is sought at which the
answer's last tokens stand, and the draft is followed from there. No model is asked, and nothing is
verified here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stepwell.generate.draft import MAX_DRAFT, Pace, Seconds
from stepwell.generate.sampler import Draft
from stepwell.generate.sequence import Sequence

LONGEST = 8
"""More tokens that agree say no more about those to come."""


@dataclass(frozen=True)
class FinishedDraft:
    """An answer that a request is likely to be given, in the ids of the model that verifies it."""

    ids: tuple[int, ...]


@dataclass
class Alignment:
    """Where an answer stands in a draft.

    said: the answer's tokens so far. at: the place in the draft of the token that is expected next.
    agreeing: how many tokens right before agree, at most LONGEST; lost: whether none does.
    """

    ids: tuple[int, ...]
    said: list[int] = field(default_factory=list)
    at: int = 0
    agreeing: int = 0
    lost: bool = False

    def extend(self, tokens: Iterable[int]) -> None:
        """Take in the answer's next tokens."""
        for token in tokens:
            self.said.append(token)
            if not self.lost and self.at < len(self.ids) and self.ids[self.at] == token:
                self.at, self.agreeing = self.at + 1, min(self.agreeing + 1, LONGEST)
            else:
                self._realign()

    def propose(self, count: int) -> tuple[int, ...]:
        """The draft's next tokens, at most `count`; none where the answer is nowhere in it."""
        return () if self.lost else self.ids[self.at : self.at + count]

    def _realign(self) -> None:
        """Go to where most of the last tokens stand; of several such places to the nearest."""
        places = [
            (self._agreement(end), -abs(end - self.at), end)
            for end in range(1, len(self.ids) + 1)
            if self.ids[end - 1] == self.said[-1]
        ]
        self.lost = not places
        if places:
            self.agreeing, _, self.at = max(places)

    def _agreement(self, end: int) -> int:
        """How many tokens before a place in the draft are those said last."""
        most = min(LONGEST, end, len(self.said))
        pairs = range(1, most + 1)
        return next((n - 1 for n in pairs if self.ids[end - n] != self.said[-n]), most)


class FinishedDrafter:
    """Drafts for requests that brought a FinishedDraft.

    How much stays depends on how many tokens agree, so that each number has a pace of its own.
    """

    def __init__(self) -> None:
        self._seconds = Seconds()
        self._paces: defaultdict[int, Pace] = defaultdict(lambda: Pace(seconds=self._seconds))
        self._alignments: dict[Sequence, Alignment] = {}

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing of any sequence."""
        return not self._alignments

    def by_pace(self, batch: Iterable[Sequence]) -> dict[Pace, list[Sequence]]:
        """Those whose draft has a continuation, by how many tokens agree."""
        groups: defaultdict[Pace, list[Sequence]] = defaultdict(list)
        for sequence in batch:
            alignment = self._aligned(sequence)
            if alignment.propose(1):
                groups[self._paces[alignment.agreeing]].append(sequence)
        return groups

    def ready(self, batch: Iterable[Sequence]) -> list[Sequence]:
        """All of them."""
        return list(batch)

    def propose(self, lengths: Mapping[Sequence, int]) -> dict[Sequence, Draft]:
        """The next tokens of each draft."""
        return {each: Draft(self._aligned(each).propose(n)) for each, n in lengths.items()}

    def opening(self, sequence: Sequence) -> Draft:
        """The first tokens of a draft, to be verified in the forward that reads the prompt.

        There each costs no more than another token of the prompt, so that as many are proposed as
        a step takes.
        """
        return Draft(self._aligned(sequence).propose(MAX_DRAFT))

    def forget(self, sequence: Sequence) -> None:
        """Drop what is known of a sequence."""
        self._alignments.pop(sequence, None)

    def _aligned(self, sequence: Sequence) -> Alignment:
        """The alignment of a sequence with its draft, up to its last token."""
        known = self._alignments.get(sequence)
        if known is None:
            draft = sequence.handle.finished_draft
            assert draft is not None, "this drafter is given requests with a finished draft"
            known = self._alignments[sequence] = Alignment(draft.ids)
        known.extend(sequence.generated[len(known.said) :])
        return known
