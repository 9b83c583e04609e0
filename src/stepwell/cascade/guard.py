"""A guarded stage: whatever goes wrong with it comes back as a value, and in time.

Owns what counts as a failure, the wait for a stage that hangs, and for how long a stage that failed
is left alone. What to do without its answer is the pipeline's business.

    error     the stage raised, or its answer ended in an error
    late      no answer within the time that it was given
    nan       a log-probability that is no number
    gone      a server that does not answer at all
    down      not asked: it failed as a whole a moment ago
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from stepwell.cascade.stage import Draft, Reply, Stage
from stepwell.errors import PromptError, StageError

Fault = Literal["error", "late", "nan", "gone", "down"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
LEFT_ALONE_S = 10.0
"""How long a stage that failed as a whole is not asked again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage has no answer to a prompt."""

    fault: Fault
    problem: str


Outcome = Reply | Failure


class Guard:
    """One stage, asked with a time limit. `faults` counts failed answers by kind, calls all calls.

    clock: seconds, as of time.monotonic.
    """

    def __init__(self, stage: Stage, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage = stage
        self.calls = 0
        self.faults: Counter[Fault] = Counter()
        self._clock = clock
        self._down_until = -math.inf
        self._problem = ""
        self._hanging: threading.Thread | None = None

    @property
    def is_up(self) -> bool:
        """Whether it would be asked now: a stage that failed is tried again after a while."""
        if self._hanging is not None and self._hanging.is_alive():
            return False
        return self._clock() >= self._down_until

    def ask(
        self,
        prompts: Sequence[str],
        drafts: Sequence[Draft] | None,
        limit_s: float | None,
        **asked: Any,
    ) -> list[Outcome]:
        """A reply or a failure for each prompt, from drafts where there are any; never raises.

        With a limit the stage is asked in a thread of its own, which is left behind where it hangs.
        """
        self.calls += 1
        if not self.is_up:
            down = Failure("down", f"not asked again yet: {self._problem}")
            return self._noted([down] * len(prompts))
        work = partial(self.stage.generate, prompts, deadline_s=limit_s, **asked)
        if drafts is not None:
            work = partial(self.stage.verify, prompts, drafts, deadline_s=limit_s, **asked)
        try:
            replies = work() if limit_s is None else self._in_time(work, limit_s)
            if len(replies) != len(prompts):
                raise StageError(f"it gave {len(replies)} answers to {len(prompts)} prompts.")
        except PromptError as error:
            if len(prompts) == 1:  # the prompt's fault: the stage stays up
                return self._noted([Failure("error", error.problem)])
            return self._in_halves(prompts, drafts, limit_s, **asked)
        except Exception as error:
            return self._noted([self._failed(error)] * len(prompts))
        return self._noted([_checked(reply) for reply in replies])

    def _in_halves(
        self,
        prompts: Sequence[str],
        drafts: Sequence[Draft] | None,
        limit_s: float | None,
        **asked: Any,
    ) -> list[Outcome]:
        """The same of each half, so that a prompt which a stage refuses is refused alone."""
        middle, outcomes = len(prompts) // 2, list[Outcome]()
        for part in (slice(middle), slice(middle, None)):
            some = None if drafts is None else drafts[part]
            outcomes += self.ask(prompts[part], some, limit_s, **asked)
        return outcomes

    def _in_time(self, work: Callable[[], list[Reply]], limit_s: float) -> list[Reply]:
        """What the work gives. Raises what it raises, or TimeoutError after the limit."""
        done: list[list[Reply]] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(run,), daemon=True, name=self.stage.name
        )
        thread.start()
        thread.join(limit_s + GRACE_S)
        if thread.is_alive():
            self._hanging = thread
            raise TimeoutError(f"no answer within {limit_s:.3g} s.")
        if raised:
            raise raised[0]
        return done[0]

    def _failed(self, error: BaseException) -> Failure:
        """The failure of a whole call, after which the stage is left alone for a while."""
        fault: Fault = "error"
        if isinstance(error, TimeoutError):
            fault = "late"
        elif isinstance(error, ConnectionError) or getattr(error, "gone", False):
            fault = "gone"
        problem = str(error) or type(error).__name__
        self._down_until, self._problem = self._clock() + LEFT_ALONE_S, problem
        return Failure(fault, problem)

    def _noted(self, outcomes: list[Outcome]) -> list[Outcome]:
        self.faults.update(each.fault for each in outcomes if isinstance(each, Failure))
        return outcomes


def _checked(reply: Reply) -> Outcome:
    """The reply, or why it is none."""
    done = reply.completion
    if done.finish_reason == "timeout":
        return Failure("late", f"{len(done.token_ids)} tokens of its answer were there in time.")
    if done.finish_reason in ("error", "cancelled"):
        return Failure("nan" if "NaN" in done.error else "error", done.error or done.finish_reason)
    if not all(map(math.isfinite, done.logprobs)):
        return Failure("nan", "a log-probability of its answer is no number.")
    return reply


GRACE_S = 0.25
"""A stage that keeps to its limit itself is given this long to say so."""
