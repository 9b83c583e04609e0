"""Whether two expressions are equal as sympy sees it, asked of a process that can be killed.

What simplifies an expression may take hours or all memory. So it does in a process of its own that
is asked one question a line, and ended where an answer takes longer than its time.

    we say    ["\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"]
    it says   "equal", "different" or "undecided"

sympy is given objects that are built from our own tree, never a text that it would evaluate.
"""

from __future__ import annotations

import importlib.util
import json
import selectors
import subprocess
import sys
from typing import IO, Any, Final, Self

from stepwell.errors import PeerError
from stepwell.evals.math_expression import Expression, read_expression

START_S: Final = 60.0
"""That the process may take to import sympy, which counts for no question."""
OUT_OF_TIME: Final = "out of time"
NOT_INSTALLED: Final = "not installed"


class SymbolicJudge:
    """Answers whether expressions are equal; its process starts with the first question.

    `seconds` is the time of one question. Closing it, or the end of its `with` block, ends the
    process.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def compare(self, first: str, second: str) -> str:
        """equal, different, undecided, or why there is no answer: out of time, not installed."""
        if importlib.util.find_spec("sympy") is None:
            return NOT_INSTALLED
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps([first, second]) + "\n")
        process.stdin.flush()
        answer = _line_of(process, self.seconds)
        if not answer:  # it is still at work, or has died of it
            self.close()
        return answer or OUT_OF_TIME

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            if not _line_of(self._process, START_S):
                self.close()
                raise PeerError(
                    "The process that compares expressions does not start.",
                    fix=f"see what `{sys.executable} -P -m {__name__}` says.",
                )
        return self._process


def _line_of(process: subprocess.Popen[str], seconds: float) -> str:
    """The line that the process says next, "" where it says none in this time."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline().strip() if waiting.select(seconds) else ""


# -- in the process --------------------------------------------------------------------------------


def built(tree: Expression) -> Any:
    """The tree as sympy's objects; letters stand for complex numbers."""
    import sympy  # type: ignore[import-untyped]

    operands = [built(operand) for operand in tree.operands]
    if tree.kind == "number":
        return sympy.Rational(tree.number.numerator, tree.number.denominator)
    if tree.kind == "symbol":
        known = {"pi": sympy.pi, "infty": sympy.oo, "e": sympy.E, "i": sympy.I}
        return known.get(tree.name, sympy.Symbol(tree.name))
    if tree.kind == "divide":
        return operands[0] / operands[1]
    makers = {"add": sympy.Add, "multiply": sympy.Mul, "power": sympy.Pow, "ln": sympy.log}
    return (makers.get(tree.kind) or getattr(sympy, tree.kind))(*operands)


def judged(first: str, second: str) -> str:
    """equal, different or undecided."""
    difference = built(read_expression(first)) - built(read_expression(second))
    verdict = difference.equals(0)
    return {True: "equal", False: "different"}.get(verdict, "undecided")


def answer_questions(questions: IO[str], answers: IO[str]) -> None:
    """Answers a line with a line, until there are no more."""
    import sympy

    print(sympy.__version__, file=answers, flush=True)
    for question in questions:
        first, second = json.loads(question)
        try:
            said = judged(first, second)
        except (ArithmeticError, TypeError, ValueError, RecursionError, NotImplementedError):
            said = "undecided"
        print(said, file=answers, flush=True)


if __name__ == "__main__":
    answer_questions(sys.stdin, sys.stdout)
