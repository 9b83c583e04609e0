"""Which answers to problems of mathematics are right, and that none of them can do harm."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.evals.math_answer import MathChecker, check_math, final_answer, last_number
from stepwell.evals.math_expression import (
    MAX_BITS,
    NotReadError,
    TooHardError,
    exact,
    read_expression,
)
from stepwell.evals.math_symbols import NOT_INSTALLED, OUT_OF_TIME, SymbolicJudge


@pytest.fixture(scope="module")
def checker() -> Iterator[MathChecker]:
    with MathChecker(seconds=20) as made:
        yield made


EQUAL = [
    # where the answer is
    ("42", "42"),
    ("The answer is 42.", "42"),
    ("Answer: 42", "42"),
    ("First 3+4=7, then the answer is $7$. Done.", "7"),
    ("steps\n#### 1,234", "1234"),
    ("she pays $18.", "He earns 9*2=18\n#### 18"),
    (r"so \boxed{1} or rather \boxed{\frac{1}{2}}", "0.5"),
    (r"$\boxed 7$", "7"),
    (r"\fbox{3}", "3"),
    ("It takes 2, then 5 apples", "5"),
    (r"It is $\frac{3}{4}$ of all", "0.75"),
    (r"\boxed{\text{Evelyn}}", "Evelyn"),
    ("evelyn", "Evelyn"),
    ("(C)", "C"),
    # spelling of numbers
    ("1,000,000", "1000000"),
    ("007", "7"),
    (".5", "1/2"),
    ("0.50", r"\frac{1}{2}"),
    ("3.", "3"),
    ("$18.00", "18"),
    ("50%", r"50\%"),
    ("18 dollars", "18"),
    ("10 cm", "10"),
    (r"10\text{ cm}^2", "10"),
    (r"90^\circ", "90"),
    ("−5", "-5"),
    ("2 1/2", "2.5"),
    (r"2\frac{1}{2}", "5/2"),
    # LaTeX
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"-\frac{3}{4}", "-3/4"),
    (r"\left(\frac12, 1\right)", "(0.5,1)"),
    (r"[0,\infty)", r"[0, \infty)"),
    (r"\{1, 2\}", r"\{1,2\}"),
    (r"3 \pm 2\sqrt{2}", r"3\pm2\sqrt2"),
    ("x = 5", "5"),
    # values
    ("12/8", "3/2"),
    ("2**10", "1024"),
    (r"\sqrt[3]{8}", "2"),
    ("9^{1/2}", "3"),
    (r"2 \cdot 3 \times 4", "24"),
    ("(1+2)(3+4)", "21"),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{x^2+2x+1}", "(x+1)^2"),
    ("2pi r", r"2 \pi r"),
    (r"\sin x + \cos x", r"\cos x+\sin x"),
]


@pytest.mark.parametrize(("answer", "target"), EQUAL)
def test_these_are_the_same_answer(checker: MathChecker, answer: str, target: str) -> None:
    verdict = checker.check(answer, target)
    assert verdict.equal, verdict


DIFFERENT = [
    ("42", "43"),
    ("-5", "5"),
    ("1/2", "0.333"),
    ("0.333", "1/3"),
    ("50", "0.5"),
    ("1,2", "12"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2,3)"),
    ("Evelyn", "Kevin"),
    ("x^2", "2x"),
    ("5 x", "5"),
    ("x", "X"),
    (r"\frac{1}{0}", "0"),
    (r"2\sqrt{3}", r"\sqrt{13}"),
    ("the answer is 7, not 8", "8"),
    ("", "1"),
    ("I do not know", "1"),
]


@pytest.mark.parametrize(("answer", "target"), DIFFERENT)
def test_these_are_not(checker: MathChecker, answer: str, target: str) -> None:
    verdict = checker.check(answer, target)
    assert not verdict.equal, verdict
    assert verdict.reason


def test_where_nothing_answers_it_is_said() -> None:
    assert final_answer("I do not know") is None
    assert check_math("I do not know", "1").reason == "no answer found"


def test_the_last_number_is_that_of_gsm8k() -> None:
    assert last_number("It costs $1,234.50, not 3") == "3"
    assert last_number("from 3 to 1,234.50.") == "1,234.50"
    assert last_number("none") is None


def test_the_solutions_of_gsm8k_are_right_by_their_own_numbers() -> None:
    file = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k_test.jsonl"
    if not file.exists():
        pytest.skip("GSM8K is not here")
    solutions = [json.loads(line)["answer"] for line in file.read_text().splitlines()]
    with MathChecker() as checker:
        for solution, other in itertools.pairwise(solutions):
            steps, number = solution.split("#### ")
            assert checker.check(solution, number).equal
            assert checker.check(f"{steps}The answer is ${number}.", solution).equal
            same = number.replace(",", "") == other.split("#### ")[1].replace(",", "")
            assert checker.check(other, solution).equal == same


fractions = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4)


@given(fractions, st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_every_spelling_of_a_fraction_is_equal_and_another_fraction_is_not(
    value: Fraction, factor: int
) -> None:
    top, bottom = value.numerator * factor, value.denominator * factor
    sign = "-" if top < 0 else ""
    spellings = [
        f"{top}/{bottom}",
        rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}",
        f"({top})/({bottom})",
    ]
    for spelled in spellings:
        assert check_math(rf"\boxed{{{spelled}}}", str(value)).equal
        assert not check_math(rf"\boxed{{{spelled}}}", str(value + Fraction(1, 7))).equal


numbers = st.builds(lambda n: str(n), st.integers(0, 99))
sums = st.recursive(
    numbers,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({''.join(t)})"),
    max_leaves=12,
)


@given(sums)
@settings(max_examples=60, deadline=None)
def test_arithmetic_is_that_of_python(text: str) -> None:
    assert exact(read_expression(text)) == eval(text)  # only digits, +-* and brackets


@pytest.mark.parametrize("text", ["2^-1", "-2^2", "2^3^2", "6/2/3", "2-3-4", "2*-3"])
def test_operators_bind_as_in_python(text: str) -> None:
    assert exact(read_expression(text)) == eval(text.replace("^", "**"))


@pytest.mark.parametrize(
    "text",
    ["", "(", "1+", "1)", "__import__('os')", "1;2", "abc", "f(x", "1" * 500, "(" * 60 + ")" * 60],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(NotReadError):
        read_expression(text)


@pytest.mark.parametrize(
    "text", ["9**9**9**9", "9^{9^{9}}", "2^{99999999}", "(2^{4000})^{9}", "((9^9)^{99})^{99}"]
)
def test_a_number_that_is_too_large_is_not_computed(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TooHardError, match=str(MAX_BITS)):
        exact(read_expression(text))
    verdict = check_math(text, "1")
    assert not verdict.equal
    assert "too hard" in verdict.reason
    assert time.monotonic() - begun < 1


words = st.sampled_from(
    [*"0123456789+-*/^().,{}[]$%=! \n", "\\frac", "\\sqrt", "\\boxed{", "####", "\\text{", "\\pi"]
)


@given(st.lists(words, max_size=30).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_of_a_model_breaks_the_checker(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SymbolicJudge, "compare", lambda *_: "undecided")
        verdict = check_math(text, "1")
        assert check_math(f"\\boxed{{{text}}}", text).reason
    assert verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        *("1" * 50_000, "1" * 50_000 + "/", "1," * 20_000, "\\(" * 10_000, "{" * 50_000),
        *("\\boxed{" * 2_000, "$1" * 10_000, "a " * 20_000, "-" * 50_000, "\\frac" * 5_000),
    ],
    ids=lambda text: text[:8],
)
def test_long_texts_take_no_long_time(text: str) -> None:
    begun = time.monotonic()
    assert not check_math(text, "7").equal
    assert time.monotonic() - begun < 3


HARD = ("(x+y+z+1)^{300}", "(x+y+z+1)^{299}(x+y+z+2)")


def test_what_hangs_is_ended_and_the_next_question_is_answered() -> None:
    with SymbolicJudge(seconds=20) as judge:
        assert judge.compare("x+x", "2x") == "equal"  # from here on the process runs
        judge.seconds = 0.3
        begun = time.monotonic()
        assert judge.compare(*HARD) == OUT_OF_TIME
        assert time.monotonic() - begun < 5
        judge.seconds = 20
        assert judge.compare("x+x", "2x") == "equal"
        assert judge.compare("x+x", "3x") == "different"


def test_what_is_too_hard_is_not_equal_and_says_so() -> None:
    with MathChecker(seconds=0.3) as checker:
        verdict = checker.check(*HARD)
    assert not verdict.equal
    assert verdict.reason == "too hard: sympy is out of time"


def test_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def popen(*words, **options):
        started.append(real(*words, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert check_math("x+x", "2x", seconds=20).equal
    assert [process.poll() is None for process in started] == [False]


def test_without_sympy_symbols_are_compared_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check_math("1/2", "0.5").equal
    assert check_math("2x", "2x").equal
    verdict = check_math("x+x", "2x")
    assert not verdict.equal
    assert NOT_INSTALLED in verdict.reason
