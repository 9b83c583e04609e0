"""Mathematical expressions as models write them: read into a tree, and computed exactly.

Reads the plain and the LaTeX spelling of numbers, sums, products, fractions, powers, roots and some
functions. Nothing of Python's is ever called by what a text says, and all sizes are bounded.

    sum      := product (("+" | "-") product)*
    product  := signed (("*" | "/" | nothing) signed)*
    signed   := ("-" | "+")* power
    power    := atom ("^" signed)?
    atom     := number | letter | constant | "(" sum ")" | "{" sum "}"
              | frac atom atom | sqrt ("[" sum "]")? atom | function power
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

MAX_CHARACTERS: Final = 400
MAX_DEPTH: Final = 40
MAX_LETTERS: Final = 2
"""Side by side that stand for a product; more are a word."""
MAX_BITS: Final = 4096
"""Of a numerator or denominator that is computed exactly."""

CONSTANTS: Final = ("pi", "theta", "alpha", "beta", "gamma", "infty", "infinity")
FUNCTIONS: Final = ("sin", "cos", "tan", "log", "ln", "exp")
WORDS: Final = ("frac", "sqrt", *CONSTANTS, *FUNCTIONS)

_TOKEN: Final = re.compile(
    rf"\d+\.?\d*|\.\d+|\\?(?:{'|'.join(WORDS)})(?![a-z])|[a-zA-Z]+|[-+*/^()\[\]{{}}]"
)
_TIMES: Final = re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|\*\*|[×·⋅÷−√π∞]|\\div(?![a-zA-Z])")
_PLAIN: Final = {"**": "^", "÷": "/", "\\div": "/", "−": "-"} | {
    "√": "\\sqrt",
    "π": "\\pi",
    "∞": "\\infty",
}


class NotReadError(ValueError):
    """A text that is no expression of this language; the message says why."""


class TooHardError(ValueError):
    """A value that is not computed because it is too large."""


@dataclass(frozen=True)
class Expression:
    """A node: a number, a symbol, or an operator with its operands.

    kind: number, symbol, add, multiply, divide, power, or the name of a function.
    """

    kind: str
    operands: tuple[Expression, ...] = ()
    number: Fraction = Fraction(0)
    name: str = ""


def read_expression(text: str) -> Expression:
    """The tree of a text. Raises NotReadError where it is none of this language."""
    if len(text) > MAX_CHARACTERS:
        raise NotReadError(f"it has more than {MAX_CHARACTERS} characters")
    spelled = _TIMES.sub(lambda found: f" {_PLAIN.get(found[0], '*')} ", text)
    reader = _Reader(_tokens(spelled))
    tree = reader.sum()
    if reader.next:
        raise NotReadError(f"{reader.next!r} is not expected")
    return tree


def exact(tree: Expression) -> Fraction | None:
    """The rational value; None where it is irrational, undefined or holds a symbol.

    Raises TooHardError where the value would be too large to compute.
    """
    if tree.kind == "number":
        return tree.number
    values = [exact(operand) for operand in tree.operands]
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        return None
    return _bounded(_computed(tree.kind, known))


def _computed(kind: str, values: list[Fraction]) -> Fraction | None:
    if kind == "add":
        return sum(values, Fraction(0))
    if kind == "multiply":
        return math.prod(values, start=Fraction(1))
    if kind == "divide":
        return values[0] / values[1] if values[1] else None
    return _power(*values) if kind == "power" else None


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """base ** exponent where that is rational; roots of what is no power are not."""
    root = _root(base, exponent.denominator)
    if root is None or (root == 0 and exponent <= 0):
        return None
    size = max(root.numerator.bit_length(), root.denominator.bit_length())
    if abs(root) not in (0, 1) and size * abs(exponent.numerator) > 2 * MAX_BITS:
        raise TooHardError(f"a power has more than {MAX_BITS} bits")
    if abs(root) == 1:  # however large the exponent is
        return root if exponent.numerator % 2 else Fraction(1)
    return root**exponent.numerator


def _root(value: Fraction, degree: int) -> Fraction | None:
    """The degree-th root of a rational that is not negative, where it is rational."""
    if degree == 1 or value in (0, 1):
        return value
    if value < 0 or degree > MAX_BITS:
        return None
    top, bottom = (_whole_root(part, degree) for part in value.as_integer_ratio())
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(value: int, degree: int) -> int | None:
    """By bisection: floats would be wrong for large numbers."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**degree >= value else (middle + 1, high)
    return low if low**degree == value else None


def _bounded(value: Fraction | None) -> Fraction | None:
    if value is not None and max(map(int.bit_length, value.as_integer_ratio())) > MAX_BITS:
        raise TooHardError(f"a number has more than {MAX_BITS} bits")
    return value


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        token = _TOKEN.match(text, place)
        if token is None:
            raise NotReadError(f"{text[place : place + 8]!r} is not expected")
        word = token[0].lstrip("\\")
        if word.isalpha() and len(word) > MAX_LETTERS and word not in WORDS:
            raise NotReadError(f"{word!r} is a word")
        found += [word] if word in WORDS or not word.isalpha() else list(word)
        place = token.end()
    return found


class _Reader:
    """Reads the tokens from left to right, a method for each rule of the grammar."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._place, self._depth = tokens, 0, 0

    @property
    def next(self) -> str:
        """The token that comes next, "" at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def sum(self) -> Expression:
        """Terms that are added."""
        self._descend()
        terms = [self._product()]
        while self.next in ("+", "-"):
            sign = self._take()
            term = self._product()
            terms.append(_negative(term) if sign == "-" else term)
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Expression("add", tuple(terms))

    def _product(self) -> Expression:
        tree = self._signed()
        while self._goes_on():
            if self.next == "/":
                self._take()
                tree = Expression("divide", (tree, self._signed()))
            else:
                if self.next == "*":
                    self._take()
                tree = Expression("multiply", (tree, self._signed()))
        return tree

    def _goes_on(self) -> bool:
        """Whether another factor follows."""
        return bool(self.next) and self.next not in "+-^)[]}"

    def _signed(self) -> Expression:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self._take() == "-"
        tree = self._power()
        return _negative(tree) if negative else tree

    def _power(self) -> Expression:
        base = self._atom()
        if self.next != "^":
            return base
        self._take()
        self._descend()
        exponent = self._signed()
        self._depth -= 1
        return Expression("power", (base, exponent))

    def _atom(self) -> Expression:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return Expression("number", number=Fraction(token.removesuffix(".")))
        if token in "({":
            return self._enclosed(token)
        if token == "frac":
            return Expression("divide", (self._atom(), self._atom()))
        if token == "sqrt":
            degree = self._enclosed(self._take()) if self.next == "[" else _TWO
            return Expression("power", (self._atom(), Expression("divide", (_ONE, degree))))
        if token in FUNCTIONS:
            return Expression(token, (self._power(),))
        if token.isalpha():
            return Expression("symbol", name="infty" if token == "infinity" else token)
        raise NotReadError(f"{token!r} is not expected")

    def _enclosed(self, opening: str) -> Expression:
        """What stands between an opening token, which has been taken, and its closing one."""
        tree = self.sum()
        self._expect(_CLOSING[opening])
        return tree

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotReadError(f"it is nested more than {MAX_DEPTH} deep")

    def _take(self) -> str:
        token = self.next
        if not token:
            raise NotReadError("it ends too early")
        self._place += 1
        return token

    def _expect(self, token: str) -> None:
        if self.next != token:
            raise NotReadError(f"expected {token!r}, found {self.next or 'the end'!r}")
        self._place += 1


_ONE: Final = Expression("number", number=Fraction(1))
_TWO: Final = Expression("number", number=Fraction(2))
_CLOSING: Final = {"(": ")", "{": "}", "[": "]"}


def _negative(tree: Expression) -> Expression:
    return Expression("multiply", (Expression("number", number=Fraction(-1)), tree))
