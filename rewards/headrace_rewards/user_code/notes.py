"""Texts that a reward gave beside a score, for whoever reads the completion: they are kept with it, within bounds.

What is too long is cut and ends in `…`; what comes after the bound is left out. Nothing is computed of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace_core.protocols.grader_check import Outcome, Score

MOST_BYTES = 2000
"""UTF-8 of one completion's texts and their names."""
MOST_BYTES_A_CALL = 128 * 1024
"""Of all completions that are scored in one call: a host's answer is bounded, too."""
_NAME_CHARACTERS = 100
_CUT = "…"


def notes_of(values: Mapping[Any, Any], most: int = MOST_BYTES) -> dict[str, str]:
    """Those of the values that are texts, as valid Unicode, within `most` bytes."""
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
    """The outcomes of one call, with shorter notes where they would have more than `MOST_BYTES_A_CALL` together."""
    noted = sum(bool(_noted(outcome)) for outcome in outcomes)
    most = MOST_BYTES_A_CALL // max(noted, 1)
    if most >= MOST_BYTES:
        return list(outcomes)
    return [
        msgspec.structs.replace(outcome, notes=notes_of(notes, most)) if (notes := _noted(outcome)) else outcome
        for outcome in outcomes
    ]


def _noted(outcome: Outcome) -> dict[str, str]:
    return outcome.notes if isinstance(outcome, Score) else {}


def _cut(text: str, most: int) -> str:
    encoded = text[: most + 1].encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded.decode()
    room = most - len(_CUT.encode())
    return encoded[:room].decode("utf-8", "ignore") + _CUT if room > 0 else ""
