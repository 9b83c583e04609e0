"""What a response cache saves: the same prompts asked twice, of an empty one and of a full one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.evals.bench.figures import Row, make_row
from stepwell.evals.bench.ours import Ours
from stepwell.evals.bench.plan import BenchPlan, Subject
from stepwell.evals.bench.prompts import note_of, prompts_of, tokenizer_of
from stepwell.evals.bench.turns import take_turns
from stepwell.generate.answer_key import AnswerKey
from stepwell.generate.request import Completion
from stepwell.generate.response_cache import ResponseCache
from stepwell.generate.text import TextGenerator
from stepwell.model.transformer import Transformer
from stepwell.text.tokenizer import Tokenizer


def cache(subject: Subject, ours: Ours, plan: BenchPlan) -> Iterator[Row]:
    """Answers a second that are found, against answers that are made; microseconds of a look-up."""
    vocab_size = ours.model.config.vocab_size
    try:
        ours.check_length(2 * plan.answer_tokens)
        tokenizer = tokenizer_of(subject.directory, vocab_size)
        prompts = prompts_of(subject.directory, vocab_size, plan)
    except StepwellError as error:
        yield make_row("cache", "all found", subject.name, "answers/s", error.problem)
        return
    with tempfile.TemporaryDirectory() as folder, TimedCache(Path(folder) / "answers") as kept:
        texts = [tokenizer.decode(ids) for ids in prompts]
        asking = Asking(ours.model, tokenizer, texts, plan.answer_tokens, kept)
        turns = {"none": asking.none_found, "all": asking.all_found, "look-up": asking.look_up}
        figures = take_turns(turns, plan)
    sides = (figures["all"], "none found", figures["none"])
    rows = [
        make_row("cache", "all found", subject.name, "answers/s", *sides),
        make_row("cache", "one look-up", subject.name, "µs", figures["look-up"]),
    ]
    yield from (replace(row, note=note_of(plan)) for row in rows)


class TimedCache(ResponseCache):
    """A response cache that knows how many seconds its last look-up took."""

    seconds = 0.0

    def get_many(self, keys: Sequence[AnswerKey]) -> list[Completion | None]:
        """The answer under each key, None where there is none or where it is damaged."""
        begun = time.perf_counter()
        found = super().get_many(keys)
        self.seconds = time.perf_counter() - begun
        return found


class Asking:
    """The same prompts, asked again and again. In a round, `none_found` has the first turn."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        new_tokens: int,
        cache: TimedCache,
    ) -> None:
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._new_tokens, self._cache = new_tokens, cache
        self._made: list[str] = []

    def none_found(self, _round: int) -> float:
        """Answers a second, all of them made and kept."""
        self._cache.clear()
        seconds, self._made = self._ask(num_found=0)
        return len(self._made) / seconds

    def all_found(self, _round: int) -> float:
        """Answers a second, all of them found. Raises StepwellError where one is another text."""
        seconds, texts = self._ask(num_found=len(self._prompts))
        if texts != self._made:
            raise StepwellError("The texts that were found are not those that were made.")
        return len(texts) / seconds

    def look_up(self, number: int) -> float:
        """Microseconds for each answer that the cache itself takes to find all of them."""
        self.all_found(number)
        return self._cache.seconds / len(self._prompts) * 1e6

    def _ask(self, num_found: int) -> tuple[float, list[str]]:
        """Seconds until all is answered, and the texts; the engine is a new one, without prompts.

        Raises StepwellError where another number of answers is found.
        """
        generator = TextGenerator(self._model, self._tokenizer, long_prompt="slide")
        before = self._cache.statistics.hits
        begun = time.perf_counter()
        answers = generator.generate_batch(
            self._prompts,
            cache=self._cache,
            temperature=0.0,
            max_new_tokens=self._new_tokens,
            ignore_eos=True,
        )
        seconds = time.perf_counter() - begun
        hits = self._cache.statistics.hits - before
        if hits != num_found:
            raise StepwellError(f"{hits} of {len(answers)} answers were found, not {num_found}.")
        return seconds, [completion.text for [completion] in answers]
