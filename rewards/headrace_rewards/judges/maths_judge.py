"""math-verify's verdict on a batch of completions; work that a batch has in common is done once.

Invariant: each verdict is that of `verify(parse(boxed(gold)), parse(completion))` with math-verify's own settings and
no time limits. Three ways lead there sooner, and tests hold each to math-verify itself:

    gold           is parsed once a batch
    completion     `core` cuts a text that ends in its one box down to that box; equal cores are parsed once
    whole numbers  two plain integers are compared as integers

math-verify's time limits are signals, which cannot end a long operation on large integers; the host's limit can.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of time limits that are off

_DELIMITERS = ("$", "\\boxed", "\\(", "\\[")
_INTEGER = r"-?(?:0|[1-9][0-9]{0,14})"
_GOLD_INTEGER = re.compile(_INTEGER)
_ANSWER_INTEGER = re.compile(rf"(?P<bare>{_INTEGER})|(?P<dollar>\$?)\\boxed\{{(?P<boxed>{_INTEGER})\}}(?P=dollar)")
_FINAL_BOX = re.compile(r"(?P<box>\\boxed\{(?:[^{}$\[\]\\]|\\[a-zA-Z]|\{[^{}$\[\]\\]*\})+\})(?P<dollar>\$?)\.?")


def judge(completions: Sequence[str], gold: Sequence[str]) -> list[float | None]:
    """1.0 where a completion has the answer, 0.0 where it has another or none; `None` where the gold has none."""
    batch = _Batch()
    return [batch.verdict(text, reference) for text, reference in zip(completions, gold, strict=True)]


def boxed(gold: str) -> str:
    """The text that math-verify reads as the gold: an answer without delimiters is LaTeX as a whole.

    Left bare, `3\\pi` would be read as 3 and `\\sqrt{2}` as nothing.
    """
    return gold if any(mark in gold for mark in _DELIMITERS) else f"\\boxed{{{gold}}}"


def core(text: str) -> str:
    """A text, no longer than `text`, that math-verify reads alike.

    Of patterns of one priority math-verify takes the match that ends last. A box at the end of a text therefore wins
    unless "final answer" stands before it, and another box would only be taken into the same match.
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
    """What the verdicts of one batch have in common."""

    def __init__(self) -> None:
        self._golds: dict[str, list[Any] | None] = {}
        self._answers: dict[str, list[Any]] = {}
        self._verdicts: dict[tuple[str, str], float | None] = {}

    def verdict(self, text: str, gold: str) -> float | None:
        """See `judge`."""
        question = self._shortest(text), gold
        if question not in self._verdicts:
            self._verdicts[question] = self._judge(*question)
        return self._verdicts[question]

    def _shortest(self, text: str) -> str:
        """The core, unless it cannot be read: math-verify then looks for an answer in the rest of the text."""
        short = core(text)
        if short == text or _ANSWER_INTEGER.fullmatch(short) or _is_mathematics(self._answer(short)):
            return short
        return text

    def _judge(self, text: str, gold: str) -> float | None:
        if _GOLD_INTEGER.fullmatch(gold) and (answer := _ANSWER_INTEGER.fullmatch(text)):
            return float(int(answer["bare"] or answer["boxed"]) == int(gold))
        reference = self._gold(gold)
        return None if reference is None else float(verify(reference, self._answer(text), timeout_seconds=None))

    def _gold(self, gold: str) -> list[Any] | None:
        if gold not in self._golds:
            found = parse(boxed(gold), parsing_timeout=None)
            self._golds[gold] = found if _is_mathematics(found) else None
        return self._golds[gold]

    def _answer(self, text: str) -> list[Any]:
        if text not in self._answers:
            self._answers[text] = parse(text, parsing_timeout=None)
        return self._answers[text]


def _is_mathematics(found: list[Any]) -> bool:
    """Whether `parse` understood what it found; text that it did not understand stays text."""
    return bool(found) and not isinstance(found[0], str)
