"""The text of one answer as it grows: token ids in, text that is final out.

Text is held back while it could still be the beginning of a stop string, or of a character that the
next token completes, so that nothing shown is ever taken back.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import replace

from stepwell.generate.record import Recording
from stepwell.generate.request import Completion, FinishedEvent, TokenEvent
from stepwell.text.detokenize import IncrementalDecoder, continuation
from stepwell.text.tokenizer import Tokenizer


class StopMatcher:
    """Finds the stop string that is completed first in text that arrives in pieces."""

    def __init__(self, stops: Series[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, piece: str) -> str:
        """The text that is now known to come before any stop string."""
        if self.matched:
            return ""
        text = self._held + piece
        starts = [(text.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if ends:
            self.matched, self._held = True, ""
            return text[: min(ends)[1]]  # of stops completed together, the longest
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """What was held back, where no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Transcript:
    """One choice's tokens, log-probabilities and text, which goes on from that of `prompt_ids`.

    Decodes as it goes only where it must: to stream, or to look for stop strings. `prefix` is put
    before the text (the prompt, where the caller wants it back). What comes after a stop string,
    because the engine ran ahead, is left out. skip_special: whether special tokens are, too, where
    it decodes as it goes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Series[int],
        *,
        stop_ids: frozenset[int],
        stops: Series[str],
        stream: bool,
        prefix: str = "",
        skip_special: bool = True,
    ) -> None:
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self._tokenizer, self._prompt_ids, self._stop_ids = tokenizer, prompt_ids, stop_ids
        decodes = stream or bool(stops)
        self._decoder = (
            IncrementalDecoder(tokenizer, after=prompt_ids, skip_special=skip_special)
            if decodes
            else None
        )
        self._matcher = StopMatcher(stops)
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._top_logprobs: list[tuple[tuple[int, float], ...]] = []
        self._pieces = [prefix]

    @property
    def reached_stop(self) -> bool:
        """Whether a stop string has been completed."""
        return self._matcher.matched

    @property
    def finished(self) -> Completion:
        """The completion of a choice that has ended."""
        assert self.completion is not None, "the engine has not ended this choice"
        return self.completion

    def push(self, event: TokenEvent) -> str:
        """Take a token; returns the text that is final now, always "" where nothing is decoded."""
        if self.reached_stop:
            return ""
        self._ids.append(event.token_id)
        if event.logprob is not None:
            self._logprobs.append(event.logprob)
        if event.top_logprobs:
            self._top_logprobs.append(event.top_logprobs)
        if self._decoder is None or event.token_id in self._stop_ids:
            return ""
        return self._keep(self._matcher.push(self._decoder.push(event.token_id)))

    def finish(self, event: FinishedEvent) -> str:
        """Take the end of the choice; returns the rest of the text and sets `completion`."""
        rest = self._keep(self._rest())
        usage = event.usage
        self.error = None if self.reached_stop else event.error
        if self.reached_stop:
            usage = replace(usage, completion_tokens=len(self._ids))
        self.completion = Completion(
            text="".join(self._pieces),
            token_ids=tuple(self._ids),
            finish_reason="stop" if self.reached_stop else event.reason,
            usage=usage,
            logprobs=tuple(self._logprobs),
            top_logprobs=tuple(self._top_logprobs),
            error=str(self.error or ""),
            executors=event.executors,
            recording=None if event.recording is None else Recording([event.recording]),
        )
        return rest

    def _rest(self) -> str:
        """The text that is not shown yet."""
        if self._decoder is None:
            shown = [token for token in self._ids if token not in self._stop_ids]
            return continuation(self._tokenizer, self._prompt_ids, shown)
        return self._matcher.push(self._decoder.flush()) + self._matcher.flush()

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece
