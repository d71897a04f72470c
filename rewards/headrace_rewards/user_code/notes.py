"""Limits the notes of a score: texts that a reward returns beside it, which are shown with the completion.

A text beyond the limit is cut and ends in `…`; those after it are dropped. Notes are for people only: nothing is
computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace_core.protocols.grader_check import Outcome, Score

MAX_BYTES = 2000
"""Most UTF-8 bytes of one completion's notes and their names."""
MAX_CALL_BYTES = 128 * 1024
"""Most bytes of the notes of all completions of one call: the answer of a host process is limited, too."""
_NAME_CHARACTERS = 100
_CUT = "…"


def notes_of(values: Mapping[Any, Any], most: int = MAX_BYTES) -> dict[str, str]:
    """The values that are texts, as valid Unicode, within `most` bytes."""
    kept, left = dict[str, str](), most
    for key, value in values.items():
        if not isinstance(value, str):
            continue
        name = _cut(str(key)[:_NAME_CHARACTERS], left)
        text = _cut(value, left - len(name.encode()))
        if not name or (value and not text):
            break
        kept[name] = text
        left -= len(name.encode()) + len(text.encode())
    return kept


def bounded(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of one call, with notes shortened so that together they take at most `MAX_CALL_BYTES`."""
    with_notes = sum(bool(_notes_in(outcome)) for outcome in outcomes)
    most = MAX_CALL_BYTES // max(with_notes, 1)
    if most >= MAX_BYTES:
        return list(outcomes)
    return [
        msgspec.structs.replace(outcome, notes=notes_of(notes, most)) if (notes := _notes_in(outcome)) else outcome
        for outcome in outcomes
    ]


def _notes_in(outcome: Outcome) -> dict[str, str]:
    return outcome.notes if isinstance(outcome, Score) else {}


def _cut(text: str, most: int) -> str:
    encoded = text[: most + 1].encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded.decode()
    room = most - len(_CUT.encode())
    return encoded[:room].decode("utf-8", "ignore") + _CUT if room > 0 else ""
