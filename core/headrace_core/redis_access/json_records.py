"""What is kept in Redis, read back: one way to decode it, and one way to go on without what cannot be.

    one record asked for     read     → the record, or `Damaged`: where it is kept, what is wrong, what to do
    one of many in a list    readable, if_sound → the others; the damaged one is named in the log, once a process

Invariant: no bytes, whatever they are, raise anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import msgspec

from ..errors import Damaged
from ..logs import get_logger

T = TypeVar("T")
P = ParamSpec("P")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: not of the format, text that is none, nested beyond all reason."""
_ENTRY_ID = re.compile(rb"[0-9]{1,19}-[0-9]{1,19}")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMED = 1024
"""Damaged records that are not named again."""


def decode_record(raw: bytes, kind: type[T], where: str) -> T:
    """The record, JSON of a `kind`; `where` is its key (and field). Raises `Damaged`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE as error:
        raise damaged(where, error) from error


def decode_records(raw: Iterable[tuple[str, bytes]], kind: type[T]) -> list[T]:
    """Those of the (where, record) that can be read, in order."""
    found = []
    for where, record in raw:
        try:
            found.append(decode_record(record, kind, where))
        except Damaged as error:
            name(error)
    return found


def whole_number(raw: bytes | None, where: str) -> int:
    """A figure; 0 where there is none. Raises `Damaged`."""
    try:
        return int(raw or 0)
    except ValueError as error:
        raise damaged(where, "it is no whole number") from error


def text(raw: bytes, where: str) -> str:
    """A name, or lines. Raises `Damaged`."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise damaged(where, "it is no text") from error


def entry_id(raw: bytes, where: str) -> str:
    """The id of a stream's entry. Raises `Damaged`."""
    if _ENTRY_ID.fullmatch(raw) is None:
        raise damaged(where, "it is no id of an entry")
    return raw.decode()


def is_object(raw: bytes) -> bool:
    """Whether it is an object of JSON, as `msgspec.Raw` hands it on unread."""
    try:
        _object.decode(raw.decode())
    except UNREADABLE:
        return False
    return True


def if_sound(found: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What it returns; None where it raises `Damaged`, which the log then names: of one of many that are shown."""
    try:
        return found(*args, **kwargs)
    except Damaged as error:
        name(error)
        return None


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
