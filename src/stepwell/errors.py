"""Every error that stepwell raises for something a user can cause.

    StepwellError                   exit code 1
    ├── UsageError                  exit code 2: what was asked for cannot be
    │   ├── ConfigError             an unknown key, a value out of range, or fields that contradict
    │   ├── PromptError             empty, too long, or with characters that the tokenizer lacks
    │   └── HookError               a point, layer or head that the model does not have
    ├── DataError                   a data file or data set that is missing, empty or malformed
    ├── TokenizerError              tokenizer files that are missing, malformed or of another model
    ├── TemplateError               a chat template that is missing, broken or refuses the messages
    ├── WeightsError                weights that are missing, truncated, or not as config.json says
    ├── CheckpointError             a checkpoint that is damaged, foreign or does not fit the run
    ├── FormatError                 a file in a newer format than this version reads
    ├── ShapeError                  tensors or arrays whose shapes do not fit together
    ├── CacheError                  a key/value cache misused, as by a row that is not in use
    │   └── CacheFullError          more blocks are asked for than are left
    ├── DeviceError                 a device that is not there, or tensors on two of them
    ├── LogitsError                 logits from which no token can be chosen
    ├── TrainingError               a loss that is not finite, a run that cannot go on
    ├── CascadeError                a ladder that cannot be built, fitted or run
    │   └── StageError              a stage that is gone, late, or answers nonsense
    └── PeerError                   a program compared with that does not start, or ends early

An error says what was expected, what arrived and where; `fix` says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StepwellError(Exception):
    """The root of the tree. `str(error)` is at most three lines: the problem, then the fix."""

    exit_code = 1

    def __init__(self, problem: str, *, fix: str = "") -> None:
        super().__init__(problem)  # only what __init__ takes by position: errors are copied
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\nFix: {self.fix}" if self.fix else self.problem


class UsageError(StepwellError):
    """What was asked for cannot be, whatever the files hold."""

    exit_code = 2


class ConfigError(UsageError):
    """An unknown key, a value out of range, or fields that contradict each other."""


class PromptError(UsageError):
    """A prompt that is empty, too long, or holds characters that the tokenizer lacks."""


class HookError(UsageError):
    """A hook point, layer or head that the model does not have."""


class DataError(StepwellError):
    """A data file or data set that is missing, empty or malformed."""


class TokenizerError(StepwellError):
    """Tokenizer files that are missing, malformed, or made for another model."""


class TemplateError(StepwellError):
    """A chat template that is missing, broken, or refuses the messages it is given."""


class WeightsError(StepwellError):
    """Weights that are missing, truncated, or of another shape than config.json says."""


class CheckpointError(StepwellError):
    """A checkpoint that is damaged, foreign, or does not fit the run."""


class FormatError(StepwellError):
    """A file written in a newer format than this version of stepwell reads."""


class ShapeError(StepwellError):
    """Tensors or arrays whose shapes do not fit together."""


class CacheError(StepwellError):
    """A key/value cache misused: a row that is not in use, more than fits the context."""


class CacheFullError(CacheError):
    """More blocks of a key/value cache are asked for than are free or cached."""


class DeviceError(StepwellError):
    """A device that is not there, or tensors that lie on two of them."""


class LogitsError(StepwellError):
    """Logits from which no token can be chosen; `rows` says which rows, the others are sound."""

    def __init__(self, problem: str, *, fix: str = "", rows: tuple[int, ...] = ()) -> None:
        super().__init__(problem, fix=fix)
        self.rows = rows


class TrainingError(StepwellError):
    """A loss that is not finite, or a run that cannot go on."""


class CascadeError(StepwellError):
    """A ladder that cannot be built, fitted or run."""


class StageError(CascadeError):
    """A stage that is gone, late, or answers nonsense; the cascade goes on with the others."""


class PeerError(StepwellError):
    """A program compared with that does not start, has ended, or says what nobody understands."""


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest of `known`, or all of them where none is near."""
    names = sorted(known)
    if not names:
        return "None are known."
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return "Known: " + ", ".join(names) + "."
