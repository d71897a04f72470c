"""What is kept in Redis as JSON, read back: one way to decode it, and one way to go on without what cannot be.

    one record asked for     read     → the record, or `Damaged`: where it is kept, what is wrong, what to do
    one of many in a list    readable → the others; the damaged one is named in the log, once a process

Invariant: no bytes, whatever they are, raise anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from .errors import Damaged
from .logs import get_logger

T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: not of the format, text that is none, nested beyond all reason."""
_NAMED = 1024
"""Damaged records that are not named again."""


def read(raw: bytes, kind: type[T], where: str) -> T:
    """The record, JSON of a `kind`; `where` is its key (and field). Raises `Damaged`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE as error:
        raise damaged(where, error) from error


def readable(raw: Iterable[tuple[str, bytes]], kind: type[T]) -> list[T]:
    """Those of the (where, record) that can be read, in order."""
    found = []
    for where, record in raw:
        try:
            found.append(read(record, kind, where))
        except Damaged as error:
            name(error)
    return found


def damaged(where: str, error: Any) -> Damaged:
    """The error of a record that cannot be read."""
    return Damaged(
        f"{where} in Redis cannot be read: {error}; restore it from a copy of the data folder, or delete it there "
        "(`headrace doctor` names all such)"
    )


def name(error: Damaged) -> None:
    """Say so in the log, once: a list is read again and again."""
    _named(error.message)


@lru_cache(_NAMED)
def _named(message: str) -> None:
    get_logger(__name__).error("passed over a damaged record", error=message)
