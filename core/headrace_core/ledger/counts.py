"""How many groups are in which state, and what is under way: the ledger's figures at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..redis_access.json_records import whole_number
from ..redis_access.keys import JobKeys

LIVE = ("leased", "queued", "claimed")
TERMINAL = ("trained", "dropped_stale", "filtered", "reward_failed", "generation_failed", "cancelled")
STATES = LIVE + TERMINAL
QUEUED_ONCE = ("queued", "claimed", "trained", "dropped_stale", "filtered")
"""States of groups that were generated and scored (as some cancelled ones were, too)."""
LiveState = Literal["leased", "queued", "claimed"]
_COUNTS = ("admitted", "version", "masked_tokens", "largest_age", "sampled_tokens", "fenced")


@dataclass(frozen=True, slots=True)
class Stage:
    """The groups in one live state."""

    name: LiveState
    depth: int
    since: float | None
    """When the one that is longest in it came into it, Unix seconds; None where there is none."""
    version: int | None
    """The oldest that a token of them has, or can have."""
    bytes: int
    """Of the encoded groups."""


@dataclass(frozen=True, slots=True)
class Queues:
    """Everything under way at one moment."""

    version: int
    max_staleness: int
    """The newest: new groups are admitted by it."""
    bytes: int
    """Of all encoded groups that are kept: queued, claimed, and trained on but not covered by two checkpoints."""
    share: int
    """How many they may be; 0: any number."""
    held_back: int
    """Admissions that gave no group, although the window had room, for want of memory."""
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """The ledger's counts at one moment."""

    admitted: int
    states: dict[str, int]
    version: int
    masked_tokens: int
    largest_age: int
    """Of any token that contributed to a gradient."""
    sampled_tokens: int
    fenced: int
    """Commits refused because the lease had passed to another."""
    largest_age_bound: int | None = None
    """`max_staleness`, which may change, of the step that trained that token; None before the first step."""

    @property
    def balanced(self) -> bool:
        """Whether every admitted group is in exactly one state."""
        return self.admitted == sum(self.states.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"balanced": self.balanced}


def counts_of_ledger(job_id: str, raw: Mapping[bytes, bytes]) -> LedgerCounts:
    """The account in a ledger's hash. Raises `Damaged`."""
    names, ledger = (*_COUNTS, *STATES, "largest_age_bound"), JobKeys(job_id).ledger
    found = {name: whole_number(raw.get(name.encode()), f"{ledger} {name}") for name in names}
    bound = found["largest_age_bound"] if b"largest_age_bound" in raw else None
    counts = {name: found[name] for name in _COUNTS}
    return LedgerCounts(states={s: found[s] for s in STATES}, largest_age_bound=bound, **counts)
