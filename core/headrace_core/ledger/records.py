"""What the ledger gives and takes: leases, a learner's term, claims, the records of steps, and how a call ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import HeadraceError
from ..types.staleness import Selection
from ..types.trajectory import Group


class TransitionOutcome(StrEnum):
    """How a transition ended. All of these are normal."""

    QUEUED = "queued"
    LEASED = "leased"
    """The attempt failed; the group will be leased again."""
    SETTLED = "settled"
    FILTERED = "filtered"
    REWARD_FAILED = "reward_failed"
    GENERATION_FAILED = "generation_failed"
    FENCED = "fenced"
    """Another worker or learner has taken over: the caller's lease or term is void."""
    CLOSED = "closed"
    """The job has ended."""
    GONE = "gone"
    """A group was no longer queued, or a setting changed, since the window was read: read it again."""


class Refusal(StrEnum):
    """Why nothing was admitted."""

    FULL = "full"
    """The pacing window is full, or the job has all the groups it needs."""
    BEHIND = "behind"
    """The worker's weights are older than the newest policy version: catch up first."""
    MEMORY = "memory"
    """The job's groups use up its share of Redis' memory, and the next step has all its groups."""
    DRAINED = "drained"
    """The worker is being drained."""
    CLOSED = "closed"


class StalenessBoundViolated(HeadraceError):
    """A commit or a settlement contradicts the staleness bound. That is a bug of the caller; nothing was changed."""

    code = "staleness_bound_broken"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to generate one group, until it expires."""

    group_id: int
    token: str
    attempt: int
    """1 for the group's first lease, 2 for its second, …"""
    version: int
    """The policy version when the lease was given; no token sampled under it is older."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to `admit`: leases, or the reason why there are none."""

    leases: tuple[Lease, ...]
    refusal: Refusal | None
    version: int


@dataclass(frozen=True, slots=True)
class Term:
    """A learner's right to claim and settle. It becomes void when another learner enlists."""

    number: int
    version: int


@dataclass(frozen=True, slots=True)
class Step:
    """The record of one settled step. From these records a new learner replays the steps after a checkpoint."""

    version: int
    """The policy version that was updated; the step made version + 1."""
    groups: tuple[int, ...]
    ages: dict[int, int]
    """Number of tokens that contributed to the gradient, by age."""
    masked_tokens: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to `claim`: a full batch, or why there is none (see `outcome`, else `selection`)."""

    version: int
    groups: tuple[Group, ...] = ()
    selection: Selection = field(default_factory=Selection)
    outcome: TransitionOutcome | None = None
