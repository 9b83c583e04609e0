"""Whether a model's answer to a problem of mathematics is right.

Finds the final answer in a text, brings it into one spelling, and compares it with the expected
one: as text, exactly as rational numbers, at last symbolically within a time limit. Accepted is
what the graders of GSM8K and MATH accept, and besides other spellings of the same value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stepwell.evals.math_expression import (
    MAX_CHARACTERS,
    WORDS,
    NotReadError,
    TooHardError,
    exact,
    read_expression,
)
from stepwell.evals.math_symbols import SymbolicJudge


@dataclass(frozen=True)
class MathVerdict:
    """Whether an answer is right, why so, and what was taken for it: None where there is none."""

    equal: bool
    reason: str
    extracted: str | None


class MathChecker:
    """Checks answers; one comparison by sympy takes at most `seconds`.

    Close it, or use it in a `with` block, since sympy runs in a process of its own.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self._judge = SymbolicJudge(seconds)

    def __enter__(self) -> MathChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self._judge.close()

    def check(self, answer: str, target: str) -> MathVerdict:
        """Whether the final answer of a text is that of the target, a bare answer or a solution."""
        found = final_answer(answer)
        if found is None:
            return MathVerdict(False, "no answer found", None)
        marked = marked_answer(target)
        equal, reason = self._compare(found, target if marked is None else marked)
        return MathVerdict(equal, reason, found)

    def _compare(self, found: str, expected: str) -> tuple[bool, str]:
        ours, theirs = normalised(found), normalised(expected)
        if ours == theirs:
            return True, "the same text"
        mine, other = _entries(ours), _entries(theirs)
        if len(mine.entries) != len(other.entries) or mine.brackets != other.brackets:
            return False, "another text"
        if not mine.brackets:
            return self._compare_values(ours, theirs)
        pairs = zip(mine.entries, other.entries, strict=True)
        verdicts = [self._compare_entry(*pair) for pair in pairs]
        return next((each for each in verdicts if not each[0]), (True, "the same entries"))

    def _compare_entry(self, ours: str, theirs: str) -> tuple[bool, str]:
        return (True, "the same text") if ours == theirs else self._compare_values(ours, theirs)

    def _compare_values(self, ours: str, theirs: str) -> tuple[bool, str]:
        """Of two different texts without commas, exactly and then by sympy."""
        try:
            trees = read_expression(ours), read_expression(theirs)
            values = exact(trees[0]), exact(trees[1])
        except NotReadError:
            return False, "another text"
        except TooHardError as error:
            return False, f"too hard: {error}"
        if None not in values:
            return (
                (True, "the same number") if values[0] == values[1] else (False, "another number")
            )
        said = self._judge.compare(ours, theirs)
        if said == "equal":
            return True, "the same by sympy"
        return False, "another value" if said == "different" else f"too hard: sympy is {said}"


def check_math(answer: str, target: str, *, seconds: float = 2.0) -> MathVerdict:
    """The verdict on one answer. Many are checked faster by one MathChecker."""
    with MathChecker(seconds) as checker:
        return checker.check(answer, target)


# -- where the answer is ---------------------------------------------------------------------------

_PROSE: Final = re.compile(r"(?:^|\s)[a-zA-Z]{2}(?=\s|$)")  # of longer words none is read
_LONGER: Final = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_BOXED: Final = re.compile(r"\\(?:boxed|fbox)\s*")
_HASHES: Final = re.compile(r"####[ \t]*([^\n]+)")
_SAYS: Final = re.compile(r"\banswer(?: is|:)[: \t]*([^\n]+?)(?:\.(?=\s|$)|\n|$)", re.IGNORECASE)
_DOLLARS: Final = re.compile(r"(?<!\\)\$([^$\n]+)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER: Final = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?(?![\d/])|-?\d+")


def final_answer(text: str) -> str | None:
    """The final answer of a text: what is marked, else what it ends with; None where it has none.

    Marks are the last \\boxed{...}, `#### x` and "the answer is x", in this order. Without one it
    is the text itself where that is a formula, else the last formula between dollars, else the
    last number, else a text of one word.
    """
    marked = marked_answer(text)
    if marked is not None:
        return marked
    says = _SAYS.findall(text)
    if says:
        return _value_in(says[-1])
    if _is_formula(text):
        return text.strip()
    formulas = ["".join(groups).strip() for groups in _DOLLARS.findall(text)]
    number = formulas[-1] if formulas else last_number(text)
    return number or (text.strip() if len(text.split()) == 1 else None)


def marked_answer(text: str) -> str | None:
    """What stands in the last \\boxed{...} or behind the last ####; None where there is neither."""
    boxed = [_braced(text, found.end()) for found in _BOXED.finditer(text)]
    whole = [content for content in boxed if content is not None]
    if whole:
        return whole[-1]
    hashes = _HASHES.findall(text)
    return hashes[-1].strip() if hashes else None


def last_number(text: str) -> str | None:
    """The last number of a text as it is spelled, None where there is none."""
    numbers = [found[0] for found in _NUMBER.finditer(text)]
    return numbers[-1].rstrip(",") if numbers else None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and its partner; a word where there is no brace."""
    if not text.startswith("{", start):
        word = re.match(r"[^\s$]+", text[start:])
        return word[0] if word else None
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return text[start + 1 : place].strip()
    return None


def _value_in(said: str) -> str:
    """What "the answer is ..." goes on with: a formula, else its first number, else all of it."""
    formula = _DOLLARS.search(said)
    if formula:
        return next(group for group in formula.groups() if group is not None).strip()
    if _is_formula(said):
        return said.strip()
    number = _NUMBER.search(said)
    return number[0].rstrip(",") if number else said.strip()


def _is_formula(text: str) -> bool:
    """Whether a text is short, in one line and without words, so that all of it is the answer."""
    if len(text) > MAX_CHARACTERS:
        return False
    words = (found[0] for found in _LONGER.finditer(text))
    prose = _PROSE.search(text) or any(word not in WORDS for word in words)
    return bool(text.strip()) and not prose and not re.search("[\n=]", normalised(text))


# -- one spelling ----------------------------------------------------------------------------------

_WORDS_ALONE: Final = re.compile(rf"(?<![a-zA-Z\\])({'|'.join(WORDS)})(?![a-zA-Z])")
_LETTERS: Final = re.compile(r"[a-zA-Z][a-zA-Z .'-]+")
_UNIT: Final = re.compile(
    r"(?<=[\d})])\s*\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?$"
)
_UNIT_WORDS: Final = re.compile(
    rf"^([-+$\d.,/ ]*\d)\s+(?!(?:{'|'.join(WORDS)})(?![a-zA-Z]))"
    r"(?:[a-zA-Z]{3}|(?:mm|cm|dm|km|ft|in|mi|kg|mg|lb|oz|ml|hr|am|pm|sq)(?![a-zA-Z]))[a-zA-Z ]*"
    r"(?:\^\{?\d\}?)?$"
)
_WRAPPED: Final = re.compile(r"\\(?:text|textbf|mathrm|mbox|textrm|mathbf)\s*\{([^{}]*)\}")
_THOUSANDS: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_STEPS: Final = (
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"±"), r"\\pm "),
    (re.compile(r"\\(?:left|right|displaystyle|[!,;: ])|~"), " "),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°"), ""),
    (re.compile(r"\\?[$%]|\\\(|\\\)|\\\[|\\\]|[€£]|\{,\}"), ""),
    (re.compile(r"^\s*[a-zA-Z]\w?\s*=(?!=)"), ""),
    (re.compile(r"\\sqrt\s*(\d+|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}"), r"(\1+\2/\3)"),
    (re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)"), r"(\1+\2/\3)"),
)


def normalised(text: str) -> str:
    """The text in one spelling: without spaces, dollars, percent signs, units and LaTeX's layout.

    Words that are no part of a formula become lower case. A text too long to be read stays as is.
    """
    if len(text) > MAX_CHARACTERS:
        return text.strip()
    text = _UNIT.sub("", text.strip().rstrip("."))
    text = _WRAPPED.sub(r"\1", text).strip()
    text = _UNIT_WORDS.sub(r"\1", text)
    letter = re.fullmatch(r"\(([A-Za-z])\)", text)
    if letter:  # the choice of a multiple choice
        return letter[1]
    if _LETTERS.fullmatch(text) and text not in WORDS:
        return " ".join(text.lower().split())
    for pattern, spelled in _STEPS:
        text = pattern.sub(spelled, text)
    if not _BRACKETS.fullmatch(text.strip()):
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = _WORDS_ALONE.sub(r"\\\1", text)
    return re.sub(r"(?<![a-zA-Z])\s+|\s+(?![a-zA-Z])", "", text).rstrip(".")


_BRACKETS: Final = re.compile(r"([(\[]|\\\{)(.*)([)\]]|\\\})", re.DOTALL)


@dataclass(frozen=True)
class _Entries:
    """The entries of a tuple, interval or set, and its brackets; "" around what is none of them."""

    brackets: str
    entries: tuple[str, ...]


def _entries(text: str) -> _Entries:
    """The text cut at the commas that are in no inner brackets."""
    inside = _BRACKETS.fullmatch(text)
    body, brackets = (inside[2], inside[1] + inside[3]) if inside else (text, "")
    parts, depth = [""], 0
    for character in body:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:  # as in (1+2)(3+4): the brackets are no partners
            return _Entries("", (text,))
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    if len(parts) == 1:
        return _Entries("", (text,))
    return _Entries(brackets or ",", tuple(parts))
