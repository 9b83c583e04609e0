"""How much of an earlier stage's answer stays where a later stage verifies it.

Owns the count by position, of answers as they came: a prompt that stopped early verifies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stepwell.cascade.answer import Answer
from stepwell.cascade.stage import Reply


@dataclass(frozen=True)
class Acceptance:
    """Verified drafts by position, from 0.

    reached: drafts of which everything before the position stayed; accepted: those of them whose
    token there stayed too. tokens were written in so many forwards of the verifying stages.
    """

    reached: tuple[int, ...]
    accepted: tuple[int, ...]
    tokens: int
    forwards: int

    @property
    def shares(self) -> tuple[float, ...]:
        """The chance that a token stays given that all before it did, by position."""
        pairs = zip(self.accepted, self.reached, strict=True)
        return tuple(stayed / reached for stayed, reached in pairs)

    @property
    def tokens_per_forward(self) -> float | None:
        """Tokens a forward of a verifying stage, None where nothing was verified."""
        return self.tokens / self.forwards if self.forwards else None

    @classmethod
    def joined(cls, parts: Sequence[Acceptance]) -> Acceptance:
        """The counts of several together."""
        length = max((len(part.reached) for part in parts), default=0)
        return cls(
            tuple(sum(_at(part.reached, place) for part in parts) for place in range(length)),
            tuple(sum(_at(part.accepted, place) for part in parts) for place in range(length)),
            sum(part.tokens for part in parts),
            sum(part.forwards for part in parts),
        )


def acceptance(answers: Iterable[Answer], vocabularies: Sequence[str]) -> Acceptance:
    """The acceptance of drafts in answers; vocabularies are the stages'.

    Drafts whose tokens mean nothing to the verifying stage are left out. A forward writes one token
    of its own after those of the draft that stay, but for one that ends in the draft.
    """
    verified = list(_verified(answers, vocabularies))
    pairs = [(old.completion.token_ids, new.completion.token_ids) for old, new in verified]
    usages = [new.completion.usage for _, new in verified]
    reached, accepted = by_position(pairs)
    return Acceptance(
        reached,
        accepted,
        tokens=sum(usage.completion_tokens for usage in usages),
        forwards=sum(max(1, u.completion_tokens - u.accepted_tokens) for u in usages),
    )


def by_position(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How often each position was reached and accepted, of pairs of a draft and its answer.

    Where an answer ends before its draft does, the rest of the draft was not judged.
    """
    reached: list[int] = []
    accepted: list[int] = []
    for draft, answer in pairs:
        for place, (drafted, said) in enumerate(zip(draft, answer, strict=False)):
            if place == len(reached):
                reached.append(0)
                accepted.append(0)
            reached[place] += 1
            if drafted != said:
                break
            accepted[place] += 1
    return tuple(reached), tuple(accepted)


def _verified(
    answers: Iterable[Answer], vocabularies: Sequence[str]
) -> Iterator[tuple[Reply, Reply]]:
    """Each verified reply after the one that was its draft."""
    for answer in answers:
        replies = answer.journey.replies if answer.journey is not None else {}
        for (earlier, old), (later, new) in pairwise(replies.items()):
            same = vocabularies[earlier - 1] == vocabularies[later - 1] != ""
            if same and new.mode == "verified":
                yield old, new


def _at(counts: Sequence[int], place: int) -> int:
    return counts[place] if place < len(counts) else 0
