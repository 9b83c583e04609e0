"""Speculation: which rows get a draft, from whom and how long, and whether that pays.

Owns the drafters of an engine and its measurements. A draft is a guess that the engine verifies: it
can make an answer slow, never wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from collections.abc import Sequence as Series
from typing import Final, Literal, get_args

from stepwell.errors import ConfigError, suggest
from stepwell.generate.draft import Pace, Seconds
from stepwell.generate.drafters import Drafter, LookupDrafter, ModelDrafter
from stepwell.generate.finished_draft import FinishedDraft, FinishedDrafter
from stepwell.generate.sampler import NO_DRAFT, Draft, Events, Sampler
from stepwell.generate.sequence import Sequence
from stepwell.model.transformer import Transformer

LOOKUP: Final = "lookup"
DraftSource = Transformer | FinishedDraft | Literal["lookup"]
"""A smaller model of the same vocabulary, a whole answer, or the sequence's own past."""
DraftRule = Literal["equality", "rejection"]

logger = logging.getLogger(__name__)


class Speculation:
    """The drafters of an engine, and what it has measured.

    vocab_size: the target's. strict, max_rows and num_blocks are those of the engine and its cache.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        vocab_size: int,
        strict: bool,
        max_rows: int,
        num_blocks: int | None,
    ) -> None:
        self._sampler, self._vocab_size = sampler, vocab_size
        self._strict, self._max_rows, self._num_blocks = strict, max_rows, num_blocks
        self._drafters: dict[Transformer | Literal["lookup"], Drafter] = {}
        self._finished = FinishedDrafter()
        self._verify = Seconds()
        self._failed: set[Sequence] = set()
        self._paces: dict[Sequence, Pace] = {}  # of the drafts of this step

    def check(self, source: DraftSource | None, rule: DraftRule) -> None:
        """Raises ConfigError for what cannot draft here.

        That is a model of another vocabulary, what is neither source nor rule, and a rule that does
        not keep what strict mode promises.
        """
        if source is not None:
            self._check_source(source)
        if rule not in get_args(DraftRule):
            raise ConfigError(f"draft_rule is {rule!r}. {suggest(rule, get_args(DraftRule))}")
        if self._strict and rule == "rejection":
            raise ConfigError(
                "The rejection rule keeps an answer's distribution but not its tokens, which strict"
                " mode promises.",
                fix='use draft_rule="equality", or leave strict out.',
            )

    def drafter(self, source: DraftSource | None) -> Drafter | None:
        """Who drafts from a source. A new one takes the place of those that hold nothing."""
        if source is None or isinstance(source, FinishedDraft):
            return None if source is None else self._finished
        if source not in self._drafters:
            drafter = self._made(source)
            for other in [each for each, known in self._drafters.items() if known.is_idle]:
                del self._drafters[other]
            self._drafters[source] = drafter
        return self._drafters[source]

    @property
    def _is_off(self) -> bool:
        """Whether nobody drafts."""
        return not self._drafters and self._finished.is_idle

    def open(self, batch: Series[Sequence]) -> dict[Sequence, Draft]:
        """Drafts for rows whose prompt is read to its end in this step: of finished drafts only."""
        drafts = {}
        for sequence in batch:
            if sequence.handle.finished_draft is not None:
                ids = self._finished.opening(sequence).ids[: max(0, _most(sequence))]
                if ids:
                    drafts[sequence] = Draft(ids)
        return drafts

    def propose(self, batch: Series[Sequence]) -> dict[Sequence, Draft]:
        """Drafts for rows of a batch that decodes; none for rows that better go without."""
        if self._is_off:
            return {}
        self._paces = {}
        groups: dict[Drafter, list[Sequence]] = {}
        for sequence in batch:
            drafter = sequence.handle.drafter
            if drafter is not None and _most(sequence) and sequence not in self._failed:
                groups.setdefault(drafter, []).append(sequence)
        if not self._verify.reaches(len(batch)):
            return {}
        drafts: dict[Sequence, Draft] = {}
        for drafter, candidates in groups.items():
            for pace, rows in drafter.by_pace(candidates).items():
                self._paces |= dict.fromkeys(rows, pace)
                length = pace.choose(len(rows), len(batch) - len(rows), self._verify)
                if length:
                    drafts |= self._ask(drafter, pace, rows, length)
        return drafts

    def observe(
        self, sampled: Mapping[Sequence, Events], drafts: Mapping[Sequence, Draft], seconds: float
    ) -> None:
        """Learn from a step of rows that decode: what stayed of each draft, and what it took."""
        if self._is_off:
            return
        batch = list(sampled)
        num_drafted = [len(drafts.get(each, NO_DRAFT).ids) for each in batch]
        self._verify.add(len(batch) + sum(num_drafted), max(seconds, 1e-9))
        results: dict[Pace, list[tuple[int, int]]] = {}
        for sequence, drafted in zip(batch, num_drafted, strict=True):
            pace = self._paces.get(sequence)
            if pace is not None:
                results.setdefault(pace, []).append((drafted, len(sampled[sequence]) - 1))
        for pace, pairs in results.items():
            pace.length.observe(*zip(*pairs, strict=True))

    def forget(self, sequence: Sequence) -> None:
        """Free what is held for a sequence that no longer runs."""
        self._failed.discard(sequence)
        if sequence.handle.drafter is not None:
            sequence.handle.drafter.forget(sequence)

    def _ask(
        self, drafter: Drafter, pace: Pace, rows: list[Sequence], length: int
    ) -> dict[Sequence, Draft]:
        """Drafts of such a length. No request fails for want of one: rows go on without."""
        try:
            begun = time.perf_counter()
            ready = drafter.ready(rows)
            read = time.perf_counter()
            drafts = drafter.propose({each: min(length, _most(each)) for each in ready})
        except Exception as error:  # of whatever kind: the model itself needs no draft
            message = "Drafting failed, %d rows go on without: %s"
            logger.warning(message, len(rows), error, exc_info=True)
            self._failed.update(rows)
            return {}
        pace.reading = read - begun
        longest = max((len(draft.ids) for draft in drafts.values()), default=0)
        if longest:
            pace.seconds.add(len(ready), (time.perf_counter() - read) / longest)
        return drafts

    def _made(self, source: Transformer | Literal["lookup"]) -> Drafter:
        if not isinstance(source, Transformer):
            return LookupDrafter()
        return ModelDrafter(
            source,
            self._sampler,
            strict=self._strict,
            max_rows=self._max_rows,
            num_blocks=self._num_blocks,
        )

    def _check_source(self, source: DraftSource) -> None:
        if isinstance(source, FinishedDraft):
            self._check_ids(source.ids)
        elif not isinstance(source, Transformer):
            if source != LOOKUP:
                raise ConfigError(
                    f"draft is {source!r}, expected a model, a finished draft or {LOOKUP!r}.",
                    fix="load the draft model with load_model.",
                )
        elif source.config.vocab_size != self._vocab_size:
            raise ConfigError(
                f"The draft model has a vocabulary of {source.config.vocab_size} tokens, the model"
                f" one of {self._vocab_size}.",
                fix="draft with a model that has the same tokenizer.",
            )

    def _check_ids(self, ids: Series[int]) -> None:
        foreign = [token for token in ids if not 0 <= token < self._vocab_size]
        if foreign:
            raise ConfigError(
                f"The draft holds the token {foreign[0]}, the vocabulary ends before"
                f" {self._vocab_size}.",
                fix="encode the draft's text with the model's own tokenizer.",
            )


def _most(sequence: Sequence) -> int:
    """The longest draft that is of use: verifying it yields a token more."""
    return sequence.handle.room - len(sequence.generated) - 1
