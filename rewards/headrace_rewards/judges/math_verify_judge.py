"""Judges a batch of completions with math-verify, and does work that the batch has in common once.

Invariant: each verdict is that of `verify(parse(boxed(gold)), parse(completion))` with math-verify's own settings and
no time limits. There are four shortcuts, each of which the tests compare with math-verify itself:

    gold         is parsed once a batch
    completion   `core` cuts a text that ends in its one box down to that box; equal cores are judged once
    rationals    two integers or fractions of integers are compared as numbers
    wrong ones   two expressions whose values differ at a point are not equal: no algebra is tried on them

math-verify's own time limits are signals, which cannot interrupt a long operation on large integers; the limit of the
host process can.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from math_verify import parse, verify
from sympy import Expr, Float, MatrixExpr, Rational, UnevaluatedExpr
from sympy.core.function import AppliedUndef

from . import antlr_two_stage

antlr_two_stage.install()
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its time limits are off

_DELIMITERS = ("$", "\\boxed", "\\(", "\\[")
_WHOLE = r"(?:0|[1-9][0-9]{0,14})"
_RATIONAL = re.compile(
    rf"(?P<sign>-?)(?:(?P<whole>{_WHOLE})|(?P<top>{_WHOLE})/(?P<bottom>[1-9][0-9]{{0,14}})"
    rf"|\\frac\{{(?P<over>{_WHOLE})\}}\{{(?P<under>[1-9][0-9]{{0,14}})\}})"
)
_BOX = re.compile(r"(?P<dollar>\$?)\\boxed\{(?P<inside>[^{}]*(?:\{[0-9]*\}){0,2})\}(?P=dollar)")
_FINAL_BOX = re.compile(r"(?P<box>\\boxed\{(?:[^{}$\[\]\\]|\\[a-zA-Z]|\{[^{}$\[\]\\]*\})+\})(?P<dollar>\$?)\.?")


_UNCOMPARABLE = (Float, UnevaluatedExpr, MatrixExpr, AppliedUndef)
_POINT = tuple(Rational(numerator, 7) for numerator in (9, 11, 13, 17, 19, 23))
"""Values for the first symbols of an expression; one with more symbols has no value, and is left to math-verify."""
_DIGITS = 15
_MIN_DIFFERENCE = 1e-4


def judge(completions: Sequence[str], gold: Sequence[str]) -> list[float | None]:
    """1.0 for a completion with the right answer, 0.0 for one with another or none; `None` if the gold answer cannot be
    parsed."""
    batch = _Batch()
    return [batch.verdict(text, reference) for text, reference in zip(completions, gold, strict=True)]


def boxed(gold: str) -> str:
    """The gold answer as math-verify should parse it: one without delimiters is put in a box, as LaTeX as a whole.

    Without a box, `3\\pi` would be parsed as 3 and `\\sqrt{2}` as nothing.
    """
    return gold if any(mark in gold for mark in _DELIMITERS) else f"\\boxed{{{gold}}}"


def core(text: str) -> str:
    """A text, no longer than `text`, for which math-verify gives the same verdict.

    Among patterns of the same priority math-verify takes the match that ends last. So a box at the end of the text
    wins, unless "final answer" precedes it; and a second box would become part of the same match.
    """
    start = text.find("\\boxed{")
    if start < 0 or not text.isascii() or text.find("boxed", start + 6) >= 0 or "final answer" in text.lower():
        return text
    end = _FINAL_BOX.fullmatch(text, start)
    if end is None:
        return text
    if not end["dollar"]:
        return end["box"]
    if text[start - 1 : start] != "$" or (start > 1 and text[start - 2] not in " \n"):
        return text
    return f"${end['box']}$"


class _Batch:
    """Caches the parsed texts and the verdicts of one batch."""

    def __init__(self) -> None:
        self._golds: dict[str, list[Any] | None] = {}
        self._answers: dict[str, list[Any]] = {}
        self._verdicts: dict[tuple[str, str], float | None] = {}

    def verdict(self, text: str, gold: str) -> float | None:
        question = self._shortest(text), gold
        if question not in self._verdicts:
            self._verdicts[question] = self._judge(*question)
        return self._verdicts[question]

    def _shortest(self, text: str) -> str:
        """The core, unless math-verify cannot parse it: then it would search the rest of the text for an answer."""
        short = core(text)
        if short == text or _rational(_unboxed(short)) is not None or _is_mathematics(self._answer(short)):
            return short
        return text

    def _judge(self, text: str, gold: str) -> float | None:
        answer, right = _rational(_unboxed(text)), _rational(gold)
        if answer is not None and right is not None:
            return float(answer == right)
        reference = self._gold(gold)
        if reference is None:
            return None
        parsed = self._answer(text)
        if _is_mathematics(parsed) and _differ(reference[0], parsed[0]):
            return 0.0
        return float(verify(reference, parsed, timeout_seconds=None))

    def _gold(self, gold: str) -> list[Any] | None:
        if gold not in self._golds:
            parsed = parse(boxed(gold), parsing_timeout=None)
            self._golds[gold] = parsed if _is_mathematics(parsed) else None
        return self._golds[gold]

    def _answer(self, text: str) -> list[Any]:
        if text not in self._answers:
            self._answers[text] = parse(text, parsing_timeout=None)
        return self._answers[text]


def _is_mathematics(parsed: list[Any]) -> bool:
    """Whether math-verify parsed an expression; text that it did not understand is returned as text."""
    return bool(parsed) and not isinstance(parsed[0], str)


def _unboxed(text: str) -> str:
    box = _BOX.fullmatch(text)
    return text if box is None else box["inside"]


def _rational(text: str) -> Fraction | None:
    """The text as a rational number; `None` if it is anything but an integer or a fraction of integers."""
    read = _RATIONAL.fullmatch(text)
    if read is None:
        return None
    number = Fraction(int(read["whole"] or read["top"] or read["over"]), int(read["bottom"] or read["under"] or 1))
    return -number if read["sign"] else number


def _differ(gold: Any, answer: Any) -> bool:
    """Whether two expressions certainly have different values; `False` if that is not known.

    `False` too for what math-verify does not compare by the difference: relations, sets, single symbols, decimals
    (rounded) and percentages (`9%` is 9).
    """
    if not all(
        isinstance(side, Expr) and not side.is_Symbol and not side.has(*_UNCOMPARABLE) for side in (gold, answer)
    ):
        return False
    try:
        difference = gold - answer
        point = dict(zip(sorted(difference.free_symbols, key=str), _POINT, strict=False))
        value = difference.subs(point).evalf(_DIGITS)
        return bool(value.is_Float and value.is_finite and abs(value) > _MIN_DIFFERENCE)
    except Exception:  # sympy raises many kinds of errors for expressions without a value; math-verify then decides
        return False
