"""Staleness control: pure, deterministic functions.

    age(token) = version of the policy being updated − version that sampled the token

Invariant: no token with age > max_staleness contributes to a gradient. Three layers ensure it, in this order:

1. pacing (`capacity`): a group is admitted only while the groups not yet trained fit in
   (max_staleness + 1) × batch_size (AReaL, arXiv 2505.24298, equation 3, counted in groups);
2. oldest first (`select`): the learner takes groups in admission order, so that slow prompts are not starved;
3. the hard bound (`select`, `contributes`), by the setting `late`. `mask`: tokens that are too old are left out.
   `drop`: groups with such tokens are dropped. `wait`: there are no such tokens, because the learner does not start a
   step that would leave a straggler too old for every later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .trajectory import NO_VERSION

Late = Literal["mask", "drop", "wait"]
"""What happens to groups with tokens that are too old; see layer 3."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on a job's flow of groups."""

    batch_size: int
    """Groups a step."""
    max_staleness: int
    """Largest age of a token that contributes; 0 makes the pipeline synchronous."""
    total_groups: int
    """Groups to train in the whole job: n_steps × batch_size."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A group that is not trained yet, with the oldest policy version that its tokens can have."""

    group_id: int
    version: int


@dataclass(frozen=True, slots=True)
class Window:
    """What the learner chooses a batch from: the policy version to update, and every group in progress."""

    version: int
    queued: tuple[Pending, ...]
    """Complete groups, in admission order. Their `version` is that of the oldest token."""
    leased: tuple[Pending, ...]
    """Groups being generated. Their `version` is that of the lease: no token will be older."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision about a window. `take` is empty, or all groups that the batch still lacks, in admission order."""

    take: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    """Groups to drop, because they have a token that is too old (`late: drop`)."""
    wait_for: tuple[int, ...] = ()
    """Stragglers that the next step must wait for (`late: wait`)."""
    missing: int = 0
    """How many groups a full batch lacks."""


def capacity(limits: Limits, outstanding: int, trained: int) -> int:
    """How many groups may be admitted now. lua/admit.lua has the same formula; a test compares the two.

    outstanding = leased + queued + claimed. The second term prevents groups that the job would never train on.
    """
    paced = (limits.max_staleness + 1) * limits.batch_size - outstanding
    left = limits.total_groups - trained - outstanding
    return max(0, min(paced, left))


def ages(versions: npt.NDArray[np.int32], policy_version: int) -> npt.NDArray[np.int32]:
    """Age of each token, [T] → [T]; 0 where the policy did not sample it."""
    return np.where(versions == NO_VERSION, 0, policy_version - versions).astype(np.int32)


def contributes(versions: npt.NDArray[np.int32], policy_version: int, max_staleness: int) -> npt.NDArray[np.bool_]:
    """[T] → [T]: True where a token is young enough for the gradient of an update of `policy_version`."""
    return ages(versions, policy_version) <= max_staleness


def select(window: Window, batch_size: int, max_staleness: int, late: Late, held: int = 0) -> Selection:
    """Choose the next batch, oldest groups first, subject to `late`. `held` groups of the batch are claimed already."""
    queued, size = window.queued, batch_size - held
    dropped: tuple[int, ...] = ()
    if late == "drop":
        oldest = window.version - max_staleness
        dropped = tuple(g.group_id for g in queued if g.version < oldest)
        queued = tuple(g for g in queued if g.version >= oldest)
    if late == "wait":  # earliest deadline first
        queued = tuple(sorted(queued, key=lambda g: (g.version, g.group_id)))
    batch, rest = queued[:size], queued[size:]
    if len(batch) < size:
        return Selection(drop=dropped, missing=size - len(batch))
    if late == "wait":
        stragglers = _left_behind(window, rest, batch_size, max_staleness)
        if stragglers:
            return Selection(wait_for=stragglers)
    return Selection(take=tuple(sorted(g.group_id for g in batch)), drop=dropped)


def _left_behind(window: Window, rest: Sequence[Pending], batch_size: int, max_staleness: int) -> tuple[int, ...]:
    """Leased groups that no later step could take in time if this step began without them.

    A group of version a must be trained by the step that updates version a + max_staleness, and a step takes batch_size
    groups (earliest deadline first): after this step, at most (d − version) × batch_size groups may be due by d.

    Once that holds, it holds until the next step: pacing admits no more groups than the window's capacity, new and
    reissued groups have the latest deadlines, and a group that is committed or ends only lowers the count. The wait
    ends: once all stragglers are committed, the batch of the earliest deadlines leaves none behind
    (tests/core/test_staleness.py).
    """
    after = sorted([*rest, *window.leased], key=lambda g: g.version)
    leased = {g.group_id for g in window.leased}
    for i, group in enumerate(after):
        due = group.version + max_staleness
        is_last_of_deadline = i + 1 == len(after) or after[i + 1].version > group.version
        if is_last_of_deadline and i + 1 > max(0, due - window.version) * batch_size:
            return tuple(g.group_id for g in after[: i + 1] if g.group_id in leased)
    return ()
