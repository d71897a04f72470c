"""The history of one group's states: one line each, `<state> TAB <time> TAB <note>`, written by `move` of
lua/prelude.lua."""

from __future__ import annotations

from dataclasses import dataclass

from ..redis_access.json_records import damaged, text


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of a group's history."""

    state: str
    at: float
    """Unix seconds."""
    note: str


def transitions_in(raw: bytes, where: str) -> list[Transition]:
    """Decodes a group's history, oldest transition first. Raises `Damaged`."""
    lines = [line.split("\t", 2) for line in text(raw, where).removesuffix("\n").split("\n")]
    try:
        return [Transition(state, float(at), note) for state, at, note in lines]
    except ValueError as error:
        raise damaged(where, error) from error
