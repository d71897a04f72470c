"""The ledger's twin in memory: the same transitions in plain Python, without Redis.

It serves the staleness simulation, which wants thousands of schedules. `test_staleness_on_the_ledger` runs the same
schedules on this twin and on the real ledger and demands the same books, so that what holds here holds there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace_core.ledger.counts import LIVE, STATES, LedgerCounts
from headrace_core.ledger.ledger import MAX_LEASE_EXPIRIES
from headrace_core.ledger.records import Admission, Claim, Lease, Refusal, Step, Term, TransitionOutcome
from headrace_core.types.staleness import Late, Limits, Pending, Window, capacity, select
from headrace_core.types.trajectory import Group


@dataclass
class Entry:
    """One group in the books."""

    state: str = "leased"
    version: int = 0
    token: str = ""
    expires: float = 0.0
    attempt: int = 0
    lapses: int = 0
    failures: int = 0
    group: Group | None = None


class PaperLedger:
    """See `headrace_core.ledger.ledger.Ledger`; only what the simulation calls."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[int, Entry] = {}
        self._live: dict[int, Entry] = {}
        """By group, in their order: groups are numbered as they are admitted."""
        self._tokens = self._term = self._version = self._masked = self._largest = self._trained = 0

    async def open(self, limits: Limits) -> None:
        self._limits = limits

    async def counts(self) -> LedgerCounts:
        counts = Counter(e.state for e in self._entries.values())
        states = {s: counts[s] for s in STATES}
        return LedgerCounts(len(self._entries), states, self._version, self._masked, self._largest, 0, 0)

    async def newest(self) -> tuple[int, str | None]:
        return self._version, None

    # ── the rollout worker ───────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, worker: str, version: int, want: int, lease_seconds: float) -> Admission:
        if version < self._version:
            return Admission((), Refusal.BEHIND, self._version)
        given: list[Lease] = []
        expired = [g for g, e in self._live.items() if e.state == "leased" and e.expires <= self._clock()]
        for group_id in expired:
            if len(given) >= want:
                break
            entry = self._live[group_id]
            entry.lapses += bool(entry.token)
            if entry.token and entry.lapses >= MAX_LEASE_EXPIRIES:
                self._end(group_id, "generation_failed")
            else:
                given.append(self._lease(worker, group_id, lease_seconds))
        for _ in range(min(want - len(given), capacity(self._limits, len(self._live), self._trained))):
            group_id = len(self._entries)
            self._entries[group_id] = self._live[group_id] = Entry()
            given.append(self._lease(worker, group_id, lease_seconds))
        return Admission(tuple(given), None if given else Refusal.FULL, self._version)

    def _lease(self, worker: str, group_id: int, seconds: float) -> Lease:
        entry = self._live[group_id]
        self._tokens += 1
        entry.token, entry.version, entry.expires = f"{worker}#{self._tokens}", self._version, self._clock() + seconds
        entry.attempt += 1
        return Lease(group_id, entry.token, entry.attempt, entry.version)

    def _held(self, lease: Lease) -> Entry | None:
        entry = self._live.get(lease.group_id)
        return entry if entry and entry.state == "leased" and entry.token == lease.token else None

    def _end(self, group_id: int, state: str) -> None:
        entry = self._live.pop(group_id)
        entry.state, entry.token, entry.group = state, "", None

    async def renew(self, leases: Iterable[Lease], lease_seconds: float) -> set[int]:
        lost = set()
        for lease in leases:
            entry = self._held(lease)
            if entry is None:
                lost.add(lease.group_id)
            else:
                entry.expires = self._clock() + lease_seconds
        return lost

    async def commit(self, lease: Lease, group: Group) -> TransitionOutcome:
        entry = self._held(lease)
        if entry is None:
            return TransitionOutcome.FENCED
        entry.state, entry.token, entry.group, entry.version = "queued", "", group, group.oldest_version
        return TransitionOutcome.QUEUED

    async def fail(self, lease: Lease, outcome: TransitionOutcome, reason: str, attempts: int = 1) -> TransitionOutcome:
        entry = self._held(lease)
        if entry is None:
            return TransitionOutcome.FENCED
        entry.failures += 1
        if entry.failures < attempts:
            entry.token, entry.expires, entry.version = "", 0.0, self._version
            return TransitionOutcome.LEASED
        self._end(lease.group_id, outcome.value)
        return outcome

    # ── the learner ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def enlist(self) -> Term:
        for entry in self._live.values():
            if entry.state == "claimed":
                entry.state = "queued"
        self._term += 1
        return Term(self._term, self._version)

    async def claim(self, term: Term, limits: Limits, late: Late) -> Claim:
        def in_state(state: str) -> tuple[Pending, ...]:
            return tuple([Pending(g, e.version) for g, e in self._live.items() if e.state == state])

        if term.number != self._term:
            return Claim(self._version, outcome=TransitionOutcome.FENCED)
        window = Window(self._version, in_state("queued"), in_state("leased"))
        selection = select(window, limits.batch_size, limits.max_staleness, late)
        for group_id in selection.drop:
            self._end(group_id, "dropped_stale")
        taken = []
        for group_id in selection.take:
            self._live[group_id].state = "claimed"
            group = self._live[group_id].group
            assert group is not None
            taken.append(group)
        return Claim(self._version, tuple(taken), selection)

    async def settle(self, term: Term, step: Step, weights: str) -> TransitionOutcome:
        if term.number != self._term or step.version != self._version:
            return TransitionOutcome.FENCED
        for group_id in step.groups:
            self._end(group_id, "trained")
        self._trained += len(step.groups)
        self._masked += step.masked_tokens
        self._largest = max(self._largest, max(step.ages, default=0))
        self._version += 1
        return TransitionOutcome.SETTLED

    def outstanding(self) -> int:
        """leased + queued + claimed."""
        assert all(e.state in LIVE for e in self._live.values())
        return len(self._live)
