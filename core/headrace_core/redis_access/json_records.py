"""Decoding of records read from Redis, and what happens to damaged ones.

    one record is requested   decode_record     → the record, or `Damaged`: its key, the error, the remedy
    many records are listed   decode_records,
                              none_if_damaged   → the readable ones; each damaged one is logged once per process

Invariant: no bytes, whatever they are, raise anything but `Damaged`.
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
"""The errors that decoding raises: wrong format, invalid UTF-8, nested too deeply."""
_ENTRY_ID = re.compile(rb"[0-9]{1,19}-[0-9]{1,19}")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MAX_LOGGED = 1024
"""How many damaged records are remembered as already logged."""


def decode_record(raw: bytes, kind: type[T], where: str) -> T:
    """Decodes JSON of type `kind`; `where` is the record's key (and field), for the error. Raises `Damaged`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE as error:
        raise damaged(where, error) from error


def decode_records(raw: Iterable[tuple[str, bytes]], kind: type[T]) -> list[T]:
    """Decodes the readable ones of these (where, record) in order. Damaged ones are logged."""
    records = []
    for where, record in raw:
        try:
            records.append(decode_record(record, kind, where))
        except Damaged as error:
            log_damaged_once(error)
    return records


def whole_number(raw: bytes | None, where: str) -> int:
    """Decodes a whole number; 0 if `raw` is missing. Raises `Damaged`."""
    try:
        return int(raw or 0)
    except ValueError as error:
        raise damaged(where, "it is no whole number") from error


def text(raw: bytes, where: str) -> str:
    """Decodes UTF-8 text. Raises `Damaged`."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise damaged(where, "it is no text") from error


def entry_id(raw: bytes, where: str) -> str:
    """Decodes the id of a stream's entry. Raises `Damaged`."""
    if _ENTRY_ID.fullmatch(raw) is None:
        raise damaged(where, "it is no id of an entry")
    return raw.decode()


def is_object(raw: bytes) -> bool:
    """Whether `raw` is a JSON object, so that it can be passed on undecoded as `msgspec.Raw`."""
    try:
        _object.decode(raw.decode())
    except UNREADABLE:
        return False
    return True


def none_if_damaged(decode: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The result of `decode`, or None if it raises `Damaged`, which is logged: for one of many records in a list."""
    try:
        return decode(*args, **kwargs)
    except Damaged as error:
        log_damaged_once(error)
        return None


def damaged(where: str, error: Any) -> Damaged:
    """The error for a record that cannot be read; `where` is its key (and field)."""
    return Damaged(
        f"{where} in Redis cannot be read: {error}; restore it from a copy of the data folder, or delete it there "
        "(`headrace doctor` names all such)"
    )


def log_damaged_once(error: Damaged) -> None:
    """Log a damaged record, once per process: lists are read again and again."""
    _log_once(error.message)


@lru_cache(_MAX_LOGGED)
def _log_once(message: str) -> None:
    get_logger(__name__).error("passed over a damaged record", error=message)
