"""A simulated pipeline around a ledger: everything that makes tokens old, in a schedule that its seed decides.

    workers  stragglers (heavy-tailed lengths) · weight updates in flight · crashes (leases lapse) · stalls longer than
             a lease (late commits) · failures and retries
    learner  slow steps · crashes between claim and settle (its successor trains the same groups)

Time is a counter of ticks. Chance drives who acts when; the ledger decides everything else.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Lease, Refusal, Step, Term, TransitionOutcome
from headrace_core.types.staleness import Late, Limits, ages, contributes
from headrace_core.types.trajectory import Group, sampled_completion

from .paper_ledger import PaperLedger

LEASE_TICKS = 12
LONGEST = 120
"""Ticks of the slowest group: ten leases, many steps."""


class Clock:
    """A virtual clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


def a_group(group_id: int, versions: list[int], admitted_version: int | None = None) -> Group:
    """One completion with a token of each of these versions."""
    array = np.array(versions, np.int32)
    tokens, logprobs = np.arange(len(array), dtype=np.int32), np.zeros(len(array), np.float32)
    done = sampled_completion(tokens, logprobs, array, "stop", reward=1.0)
    admitted = min(versions, default=0) if admitted_version is None else admitted_version
    return Group(group_id, 1, group_id, admitted, np.array([1, 2], np.int32), (done,))


@dataclass
class Work:
    """A group being generated: what is left to do, and the versions that sampled so far."""

    lease: Lease
    left: int
    versions: list[int] = field(default_factory=list)


@dataclass
class Trained:
    """What one settled step trained on."""

    step: Step
    versions: list[list[int]]


class SimulatedWorker:
    """Generates one token a tick for each group it holds."""

    def __init__(self, name: str, ledger: PaperLedger | Ledger, slots: int, rng: random.Random) -> None:
        self._name, self._ledger, self._slots, self._rng = name, ledger, slots, rng
        self._version = 0
        self._held: list[Work] = []
        self._absent = 0

    async def tick(self) -> None:
        if self._absent > 0:
            self._absent -= 1
            return
        chance = self._rng.random()
        if chance < 0.01:
            self._held, self._absent = [], self._rng.randint(0, 5)  # crashed: nobody renews, nobody commits
        elif chance < 0.02:
            self._absent = self._rng.randint(1, 3 * LEASE_TICKS)  # stalled: comes back with what it holds
        elif chance < 0.5:
            self._version = (await self._ledger.newest())[0]
        else:
            await self._generate()
            await self._take()

    async def _generate(self) -> None:
        lost = await self._ledger.renew([w.lease for w in self._held], LEASE_TICKS) if self._rng.random() < 0.8 else ()
        self._held = [w for w in self._held if w.lease.group_id not in lost]
        for work in list(self._held):
            if not work.versions or work.versions[-1] != self._version:
                work.versions.append(self._version)
            work.left -= 1
            if work.left <= 0:
                self._held.remove(work)
                await self._finish(work)

    async def _finish(self, work: Work) -> None:
        if self._rng.random() < 0.05:
            await self._ledger.fail(work.lease, TransitionOutcome.REWARD_FAILED, "by chance", attempts=2)
        else:
            await self._ledger.commit(work.lease, a_group(work.lease.group_id, work.versions))

    async def _take(self) -> None:
        want = self._slots - len(self._held)
        admission = await self._ledger.admit(self._name, self._version, want, LEASE_TICKS)
        if admission.refusal is Refusal.BEHIND:
            self._version = admission.version
        for lease in admission.leases:
            self._held.append(Work(lease, min(LONGEST, int(self._rng.paretovariate(0.9)))))


class SimulatedLearner:
    """Claims, trains for some ticks, settles; crashes now and then."""

    def __init__(self, ledger: PaperLedger | Ledger, limits: Limits, late: Late, rng: random.Random) -> None:
        self.ledger, self.limits, self._late, self._rng = ledger, limits, late, rng
        self._term: Term | None = None
        self.batch: tuple[Group, ...] = ()
        self._busy = 0
        self._version = 0
        self.trained: list[Trained] = []
        self.dropped = 0

    async def tick(self) -> None:
        if self._rng.random() < 0.01:
            self._term, self.batch, self._busy = None, (), self._rng.randint(0, 10)
        elif self._busy > 0:
            self._busy -= 1
        elif self._term is None:
            self._term = await self.ledger.enlist()
        elif self.batch:
            await self._settle(self._term)
        else:
            claim = await self.ledger.claim(self._term, self.limits, self._late)
            self.batch, self._version = claim.groups, claim.version
            self._busy = self._rng.randint(0, 6) if claim.groups else 0
            self.dropped += len(claim.selection.drop)

    async def _settle(self, term: Term) -> None:
        every = np.concatenate([c.versions for g in self.batch for c in g.completions])
        kept = contributes(every, self._version, self.limits.max_staleness)
        counts = Counter(ages(every, self._version)[kept].tolist())
        step = Step(self._version, tuple(g.group_id for g in self.batch), dict(counts), int((~kept).sum()))
        assert await self.ledger.settle(term, step, f"v{self._version + 1}") is TransitionOutcome.SETTLED
        versions = [[int(v) for c in g.completions for v in c.versions] for g in self.batch]
        self.trained.append(Trained(step, versions))
        self.batch = ()


async def simulate(
    ledger: PaperLedger | Ledger, clock: Clock, limits: Limits, late: Late, seed: int, max_ticks: int = 40_000
) -> SimulatedLearner:
    """Run until every group of the job is trained. Fails where that takes more than `max_ticks`: something is stuck."""
    rng = random.Random(seed)
    await ledger.open(limits)
    slots = rng.randint(1, (limits.max_staleness + 1) * limits.batch_size)
    workers = [SimulatedWorker(f"w{i}", ledger, slots, rng) for i in range(rng.randint(1, 3))]
    learner = SimulatedLearner(ledger, limits, late, rng)
    parties: list[SimulatedWorker | SimulatedLearner] = [*workers, learner]
    steps = limits.total_groups // limits.batch_size
    for _ in range(max_ticks):
        clock.now += 1
        for party in rng.sample(parties, len(parties)):
            await party.tick()
        if isinstance(ledger, PaperLedger):
            assert ledger.outstanding() <= (limits.max_staleness + 1) * limits.batch_size
        if len(learner.trained) == steps:
            return learner
    raise AssertionError(f"stuck at step {len(learner.trained)} of {steps}: {await ledger.counts()}")
