"""What a function in TRL's style logs beside its rewards: components of the scores, which are numbers, and notes, which
are texts.

    log_metric("share", 0.5)             one number for the call: of every completion in it
    log_extra("length", [3, 7, …])       one for each completion
    log_extra("said", ["4", "5", …])     likewise; what is neither number nor `None` is kept as its text

A number that is not finite is left out. What the function returned keeps its name where both give one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace_core.protocols.grader_check import Outcome, Score

from .notes import notes_of
from .return_values import is_number, plain, to_number

MOST_NAMES = 64
"""Kept of one call; more are left out."""


class Logged:
    """Of one call of a function for `count` completions."""

    def __init__(self, count: int) -> None:
        self._columns: dict[str, list[float | str | None]] = {}
        self._count = count

    def log_metric(self, name: str, value: Any) -> None:
        """Of all completions."""
        self._keep(name, [value] * self._count)

    def log_extra(self, column: str, values: Any) -> None:
        """Of each completion; a list of another length is left out."""
        entries = plain(values)
        if isinstance(entries, list | tuple) and len(entries) == self._count:
            self._keep(column, entries)

    def beside(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes, the scores among them with what was logged."""
        return [self._with(outcome, index) for index, outcome in enumerate(outcomes)]

    def _keep(self, name: str, values: Sequence[Any]) -> None:
        if len(self._columns) < MOST_NAMES or name in self._columns:
            self._columns[str(name)] = [_readable(value) for value in values]

    def _with(self, outcome: Outcome, index: int) -> Outcome:
        if not isinstance(outcome, Score) or not self._columns:
            return outcome
        logged = {name: column[index] for name, column in self._columns.items()}
        kept = {name: value for name, value in logged.items() if isinstance(value, float) and math.isfinite(value)}
        notes = notes_of(
            {**outcome.notes, **{name: value for name, value in logged.items() if name not in outcome.notes}}
        )
        return msgspec.structs.replace(outcome, components={**kept, **outcome.components}, notes=notes)


def _readable(value: Any) -> float | str | None:
    return to_number(value) if value is None or is_number(value) else str(value)
