"""The ledger's figures at one moment: how many groups are in which state, and what is in progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..redis_access.json_records import whole_number
from ..redis_access.keys import JobKeys

LIVE = ("leased", "queued", "claimed")
TERMINAL = ("trained", "dropped_stale", "filtered", "reward_failed", "generation_failed", "cancelled")
STATES = LIVE + TERMINAL
QUEUED_ONCE = ("queued", "claimed", "trained", "dropped_stale", "filtered")
"""States of groups that were generated and scored; some cancelled ones were, too."""
LiveState = Literal["leased", "queued", "claimed"]
_LIVE: dict[bytes, LiveState] = {state.encode(): state for state in get_args(LiveState)}
_COUNTS = ("admitted", "version", "masked_tokens", "largest_age", "sampled_tokens", "fenced")


@dataclass(frozen=True, slots=True)
class Stage:
    """The groups in one live state."""

    name: LiveState
    depth: int
    since: float | None
    """Unix seconds when the group that has been in the state longest entered it; None if there is no group."""
    version: int | None
    """The oldest policy version that a token of these groups has, or can have; None if there is no group."""
    bytes: int
    """Size of the encoded groups."""


@dataclass(frozen=True, slots=True)
class Queues:
    """All groups in progress at one moment."""

    version: int
    max_staleness: int
    """The newest value of the setting, by which new groups are admitted."""
    bytes: int
    """Size of all encoded groups that are stored: queued, claimed, and trained but not covered by two checkpoints."""
    share: int
    """Upper limit of `bytes`; 0: none."""
    held_back: int
    """Admissions that gave no group for lack of memory, although the pacing window had capacity."""
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """The ledger's counts at one moment."""

    admitted: int
    states: dict[str, int]
    version: int
    masked_tokens: int
    largest_age: int
    """Largest age of any token that contributed to a gradient."""
    sampled_tokens: int
    fenced: int
    """Commits refused because the lease had been reissued."""
    largest_age_bound: int | None = None
    """`max_staleness` (which may change) at the step that trained the token of `largest_age`; None before a step."""

    @property
    def balanced(self) -> bool:
        """Whether every admitted group is in exactly one state."""
        return self.admitted == sum(self.states.values())

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values, for JSON."""
        return asdict(self) | {"balanced": self.balanced}


def counts_of_ledger(job_id: str, raw: Mapping[bytes, bytes]) -> LedgerCounts:
    """Decodes the counts in a ledger's hash. Raises `Damaged`."""
    names, ledger = (*_COUNTS, *STATES, "largest_age_bound"), JobKeys(job_id).ledger
    found = {name: whole_number(raw.get(name.encode()), f"{ledger} {name}") for name in names}
    bound = found["largest_age_bound"] if b"largest_age_bound" in raw else None
    counts = {name: found[name] for name in _COUNTS}
    return LedgerCounts(states={s: found[s] for s in STATES}, largest_age_bound=bound, **counts)


def queues_of(reply: Sequence[Any]) -> Queues:
    """Decodes what lua/queues.lua returns."""
    version, bound, held, share, held_back, *stages = reply
    decoded = [
        Stage(_LIVE[name], int(depth), float(since) if since else None, int(oldest) if since else None, int(size))
        for name, depth, since, oldest, size in stages
    ]
    return Queues(int(version), int(bound), int(held), int(share), int(held_back), tuple(decoded))
