"""What a cascade says to one prompt, and how it came to say so.

Owns the values that a caller gets: the answer, and a visit for each stage that was asked. Nothing
here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepwell.cascade.guard import Fault
from stepwell.cascade.stage import Mode
from stepwell.generate.request import Completion

if TYPE_CHECKING:
    from stepwell.cascade.walk import Journey

SelectedOn = Literal["none", "prompt", "draft", "answer"]
"""What the choice of an answer has read; the more of it, the less it is one stage's own draw."""
Stopped = Literal["enough", "last", "deadline", "unavailable", "failed"]


@dataclass(slots=True)
class Visit:
    """One stage's part in an answer.

    cost is incremental, in units of the mean full answer of the largest stage; seconds are those of
    the whole batch that the prompt was answered in. mode: whether the answer of an earlier stage
    was verified, of which accepted_tokens stayed. p_good is the belief, right after this stage, in
    the best answer at hand, and beliefs those in every stage's; advantage is what going on was then
    believed to save, in the unit of the cost, failures priced in. fault: why there is no answer.
    """

    stage: str
    answer: str
    cost: float
    p_good: float = 0.0
    advantage: float = 0.0
    mode: Mode = "anew"
    new_tokens: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = field(default=0.0, compare=False)
    beliefs: tuple[float, ...] = ()
    fault: Fault | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cascade returns for one prompt.

    selected_on: what the choice to return this answer had read: "answer", the answer itself;
    "draft", only other stages' answers; "prompt", nothing but the prompt; "none" where there was
    nothing to choose. certified: whether a certificate covers the policy. stopped: why it went no
    deeper. An answer that no stage could finish has p_good 0 and stopped "failed".
    """

    text: str
    stage: str
    cost: float
    p_good: float
    mode: str
    selected_on: SelectedOn
    certified: bool
    stopped: Stopped
    trace: tuple[Visit, ...]
    completion: Completion
    journey: Journey | None = field(default=None, repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """The answer as JSON can hold it, without its tokens and without what resuming needs."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        visits = [{name: getattr(visit, name) for name in _VISIT} for visit in self.trace]
        return {**fields, "finish_reason": self.completion.finish_reason, "trace": visits}


_PLAIN = ("text", "stage", "cost", "p_good", "mode", "selected_on", "certified", "stopped")
_VISIT = tuple(Visit.__dataclass_fields__)
