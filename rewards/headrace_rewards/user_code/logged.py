"""Collects what a function in TRL's style logs beside its rewards: numbers become components of the scores, texts
notes.

    log_metric("share", 0.5)             one number for all completions of the call
    log_extra("length", [3, 7, …])       one number for each completion
    log_extra("said", ["4", "5", …])     one text for each completion; other values are converted to text

A number that no score may have (`score_fault`) is left out. If the function also returned a component with the same
name, that one is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace_core.protocols.grader_check import Outcome, Score

from .notes import notes_of
from .return_values import is_number, plain, to_number

MAX_NAMES = 64
"""Most names that are recorded per call; further names are dropped."""


class Logged:
    """What one call of a function logged, for `count` completions."""

    def __init__(self, count: int) -> None:
        self._columns: dict[str, list[float | str | None]] = {}
        self._count = count

    def log_metric(self, name: str, value: Any) -> None:
        """Log one value for all completions."""
        self._record(name, [value] * self._count)

    def log_extra(self, column: str, values: Any) -> None:
        """Log one value for each completion; a list of another length is ignored."""
        entries = plain(values)
        if isinstance(entries, list | tuple) and len(entries) == self._count:
            self._record(column, entries)

    def beside(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes, with what was logged added to the scores."""
        return [self._with(outcome, index) for index, outcome in enumerate(outcomes)]

    def _record(self, name: str, values: Sequence[Any]) -> None:
        if len(self._columns) < MAX_NAMES or name in self._columns:
            self._columns[str(name)] = [_readable(value) for value in values]

    def _with(self, outcome: Outcome, index: int) -> Outcome:
        if not isinstance(outcome, Score) or not self._columns:
            return outcome
        logged = {name: column[index] for name, column in self._columns.items()}
        components = {name: value for name, value in logged.items() if isinstance(value, float)}
        notes = notes_of(
            {**outcome.notes, **{name: value for name, value in logged.items() if name not in outcome.notes}}
        )
        return msgspec.structs.replace(outcome, components={**components, **outcome.components}, notes=notes)


def _readable(value: Any) -> float | str | None:
    return to_number(value) if value is None or is_number(value) else str(value)
