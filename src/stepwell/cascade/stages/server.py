"""A server as a stage: vLLM, llama.cpp, SGLang or anything else that has /v1/completions.

Owns what becomes of a batch: its requests side by side, its deadline, and the replies. Log-
probabilities are the server's word: those of vLLM and llama.cpp are the model's own, as ours are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from stepwell.cascade.stage import Draft, Observe, Reply, TopLogprobs
from stepwell.cascade.stages.client import Client
from stepwell.cascade.stages.completions import Place, Told
from stepwell.cascade.stages.connection import NEVER, Connection, Deadline, GoneError, LateError
from stepwell.cascade.stages.dialects import check
from stepwell.cascade.stages.launch import Launcher
from stepwell.cascade.stages.verification import Given, Verified, Way, score, verify, way_of
from stepwell.config import fingerprint
from stepwell.errors import ConfigError, StageError
from stepwell.generate.batch import Progress
from stepwell.generate.request import Completion, FinishReason, SamplingParams, Usage
from stepwell.text.tokenizer import Tokenizer

GRACE_S: Final = 1.0
"""How much longer than its deadline a call waits for requests that end themselves."""

NOTHING: Final = Observe()

Job = Callable[[Deadline], Reply]


class ServerStage:
    """A model that a server at `url` runs. Up to max_rows requests are on their way at once.

    model: which of the server's models, where it has several. parameters: how many the model has,
    for its FLOPs. tokenizer: directory of the model's tokenizer, so that drafts can be exchanged by
    their ids. dialect: one of DIALECTS, where the server does not tell whose it is. launcher: what
    starts the server, which is done here and now, and stops it when the stage is closed.

    Of a batch, a request that fails has the finish_reason "error" and says why; where all fail, the
    first of them raises StageError. A draft is verified where the choice is greedy and the server
    tells the log-probabilities of a text that is given; elsewhere it is answered anew.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        max_rows: int = 32,
        timeout_s: float = 60.0,
        parameters: float | None = None,
        tokenizer: str | Path | None = None,
        dialect: str | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        if max_rows < 1 or not timeout_s > 0:
            raise ConfigError(
                f"Stage {name!r}: max_rows is {max_rows} and timeout_s {timeout_s}, expected at"
                " least 1 and more than 0."
            )
        self.name, self.max_rows, self.parameters = name, max_rows, parameters
        self._launcher = launcher
        self._way: Way | None = None
        self._is_tried, self._trying = False, threading.Lock()
        try:
            self._tokenizer = None if tokenizer is None else Tokenizer.load(tokenizer)
            connection = Connection(
                name, url, api_key=api_key, connections=max_rows, timeout_s=timeout_s
            )
            self._client = Client(connection, model=model, dialect=dialect)
            if launcher is not None:
                launcher.start()
        except BaseException:
            if launcher is not None:
                launcher.stop()
            raise
        self._pool = ThreadPoolExecutor(max_rows, thread_name_prefix=f"stage {name}")

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's name as the server tells it, not of its weights, which it does not."""
        identity = self._client.identify()
        kind = f"server {identity.dialect.name}"
        return fingerprint({"kind": kind, "model": identity.model, "parameters": self.parameters})

    @property
    def vocabulary(self) -> str:
        """The fingerprint of the tokenizer that was given, "" without one."""
        return "" if self._tokenizer is None else self._tokenizer.fingerprint

    def generate(
        self,
        prompts: Sequence[str],
        *,
        observe: Observe = NOTHING,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """One reply to each prompt, in order; the entropy of the prompt is not told."""
        params = SamplingParams(**sampling)
        jobs = [partial(self._generated, prompt, params, observe) for prompt in prompts]
        return self._answer(jobs, params, Deadline.after(deadline_s), progress)

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
        """The same replies as `generate`, found by verifying a draft where that can be done."""
        params = SamplingParams(**sampling)
        jobs = [
            partial(self._verified, prompt, draft, params, observe)
            for prompt, draft in zip(prompts, drafts, strict=True)
        ]
        return self._answer(jobs, params, Deadline.after(deadline_s), progress)

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, ...]]:
        """The log-probability of each token of an answer, of the server's own tokens."""
        pairs = list(zip(prompts, answers, strict=True))
        futures = [self._pool.submit(self._scored, prompt, answer) for prompt, answer in pairs]
        try:
            return [future.result() for future in futures]
        finally:
            _cancel(futures)

    def flops(self, completion: Completion) -> float:
        """Two for each parameter and token that was read: all but the last, and those rejected."""
        if self.parameters is None:
            raise StageError(
                f"Stage {self.name!r} does not know how many parameters its server's model has.",
                fix="say `parameters:` in the ladder file, such as 7e9.",
            )
        usage = completion.usage
        return 2.0 * self.parameters * max(0, usage.total_tokens + usage.rejected_tokens - 1)

    def forget(self) -> None:
        """Make each prompt new to the server; only vLLM can be told so."""
        self._client.forget()

    def close(self) -> None:
        """End the connections, and the server where the stage has started it."""
        self._client.connection.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._launcher is not None:
            self._launcher.stop()

    def _generated(
        self, prompt: str, params: SamplingParams, observe: Observe, deadline: Deadline
    ) -> Reply:
        count = _num_likeliest(params, observe)
        return _generated_reply(self._client.answer(prompt, params, count, deadline), observe)

    def _verified(
        self,
        prompt: str,
        draft: Draft,
        params: SamplingParams,
        observe: Observe,
        deadline: Deadline,
    ) -> Reply:
        plain = params.changed(logprobs=None).takes_likeliest
        way = self._found_way(prompt, deadline) if plain and draft.text else None
        found = None
        if way is not None:
            given = Given(prompt, draft.text, self._ids_of(draft))
            count = _num_likeliest(params, observe)
            found = verify(self._client, way, given, params, count, deadline)
        if found is None:
            return self._generated(prompt, params, observe, deadline)
        return _verified_reply(found, observe)

    def _scored(self, prompt: str, answer: str) -> tuple[float, ...]:
        if not answer:
            return ()
        way = self._found_way(prompt, NEVER)
        if way is None:
            raise StageError(
                f"Stage {self.name!r}: its server tells no log-probabilities of a text that is"
                " given.",
                fix="use vLLM, or run the model with stepwell's own engine.",
            )
        found = score(way, Given(prompt, answer), NEVER)
        if found is None:
            raise StageError(
                f"Stage {self.name!r}: the tokens of {answer[:20]!r} cannot be told from those of"
                " the prompt before it.",
                fix="divide prompt and answer between two words.",
            )
        return found

    def _found_way(self, prompt: str, deadline: Deadline) -> Way | None:
        """How the server verifies; tried out with the first prompt, and remembered."""
        with self._trying:
            if not self._is_tried:
                self._way = way_of(self._client, prompt, deadline)
                self._is_tried = True
            return self._way

    def _ids_of(self, draft: Draft) -> tuple[int, ...] | None:
        """The draft's ids up to the token that ends it, where they are the server's."""
        if self._tokenizer is None or draft.vocabulary != self.vocabulary:
            return None
        special = self._tokenizer.special_ids
        ends = (at for at, token in enumerate(draft.token_ids) if token in special)
        return draft.token_ids[: next(ends, None)]

    def _answer(
        self,
        jobs: Sequence[Job],
        params: SamplingParams,
        deadline: Deadline,
        progress: Progress | None,
    ) -> list[Reply]:
        """What becomes of each job. Raises the first error where all fail."""
        try:
            check(self._client.identify(deadline).dialect, params)
        except LateError:
            return [_without_answer("timeout") for _ in jobs]
        except StageError as error:
            raise self._explained(error) from None
        batch = _Batch(deadline)
        futures = {self._pool.submit(batch.run, job): row for row, job in enumerate(jobs)}
        replies: dict[int, Reply] = {}
        tokens = 0
        limit = None if math.isinf(deadline.at) else deadline.left + GRACE_S
        try:
            for future in as_completed(futures, limit):
                replies[futures[future]] = reply = future.result()
                tokens += reply.completion.usage.completion_tokens
                if progress is not None:
                    progress.update(len(replies), tokens)
        except TimeoutError:
            pass  # those that are missing are late
        finally:
            _cancel(futures)
        if jobs and len(batch.errors) == len(jobs):
            raise self._explained(batch.errors[0])
        return [replies.get(row, _without_answer("timeout")) for row in range(len(jobs))]

    def _explained(self, error: StageError) -> StageError:
        """The error; of a server that has ended, that it is gone, with its last words."""
        if self._launcher is None or self._launcher.is_alive:
            return error
        return GoneError(f"{error.problem} {self._launcher.last_words}", fix=error.fix)


class _Batch:
    """What is known of the requests of one call, written by several threads."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._gone: GoneError | None = None
        self.errors: list[StageError] = []

    def run(self, job: Job) -> Reply:
        """The reply of a job, whatever becomes of it; without trying a server that is gone."""
        if self._gone is not None:
            return self._failed(self._gone)
        try:
            return job(self._deadline)
        except LateError:
            return _without_answer("timeout")
        except GoneError as error:
            self._gone = error
            return self._failed(error)
        except StageError as error:
            return self._failed(error)

    def _failed(self, error: StageError) -> Reply:
        self.errors.append(error)
        return _without_answer("error", str(error))


def _num_likeliest(params: SamplingParams, observe: Observe) -> int:
    return max(observe.top_logprobs, params.logprobs or 0)


def _generated_reply(told: Told, observe: Observe) -> Reply:
    usage = Usage(told.num_prompt, told.num_new)
    return Reply(
        _completion(told.text, told.reason, told.places, usage),
        top_logprobs=_likeliest(told.places, observe),
    )


def _verified_reply(found: Verified, observe: Observe) -> Reply:
    """The reply that what stayed of a draft and what follows it make up."""
    reading, rest = found.reading, found.rest
    places, text, num_new = reading.places[: found.kept], found.text, found.kept
    reason: FinishReason = "stop" if found.ended else "length"
    if rest is not None:
        places, text, reason = places + rest.places, text + rest.text, rest.reason
        num_new += rest.num_new
    usage = Usage(
        len(reading.prompt_ids),
        num_new,
        accepted_tokens=found.kept,
        rejected_tokens=found.proposed - found.kept,
    )
    completion = _completion(text, reason, places, usage)
    return Reply(completion, "verified", _likeliest(places, observe))


def _completion(
    text: str, reason: FinishReason, places: Sequence[Place], usage: Usage
) -> Completion:
    ids = tuple(place.token for place in places if isinstance(place.token, int))
    logprobs = tuple(place.logprob for place in places)
    return Completion(text, ids if len(ids) == len(places) else (), reason, usage, logprobs)


def _likeliest(places: Sequence[Place], observe: Observe) -> tuple[TopLogprobs, ...]:
    """So many of the likeliest tokens at each place as were asked for."""
    count = observe.top_logprobs
    return tuple(place.top[:count] for place in places) if count else ()


def _without_answer(reason: FinishReason, error: str = "") -> Reply:
    return Reply(Completion("", (), reason, Usage(0, 0), error=error))


def _cancel(futures: Iterable[Future[Any]]) -> None:
    """Let none of those begin that have not begun yet."""
    for future in futures:
        future.cancel()
