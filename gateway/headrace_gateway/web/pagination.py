"""Pagination of lists: the items after a given one, and the response object around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from typing_extensions import TypedDict

from headrace_core.errors import InvalidRequest

from ..schemas.base import Page


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


_T = TypeVar("_T", bound=_Identified)


def page(items: Sequence[_T], after: str | None, limit: int) -> tuple[Sequence[_T], bool]:
    """(up to `limit` items that follow the item with id `after`, whether there are more)."""
    start = 0
    if after is not None:
        start = next((i + 1 for i, item in enumerate(items) if item.id == after), -1)
        if start < 0:
            raise InvalidRequest(f"after: this list holds no {after!r}", param="after")
    return items[start : start + limit], start + limit < len(items)


class _Entry(TypedDict):
    id: str


_E = TypeVar("_E", bound=_Entry)


class Listing(Page, Generic[_E]):
    """The type of a page of any list of objects."""

    data: list[_E]


def listing(data: list[_E], has_more: bool) -> Listing[_E]:
    """The response object of one page."""
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
