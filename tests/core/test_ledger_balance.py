"""The ledger's balance under random interleavings of several workers and learners on the real Redis.

Any party may vanish between any two of its calls (it then forgets what it held), come back late, or send a call twice.
After every call the whole of what Redis holds is read and held against the invariants of `headrace_core.ledger.ledger`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from headrace_core.ledger.counts import LIVE, TERMINAL
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Claim, Lease, Refusal, Step, Term, TransitionOutcome
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.redis_access.scripts import script_source
from headrace_core.types.staleness import Limits

from .pipeline import Clock, a_group

LEASE_SECONDS = 30
SENT_TWICE = ("renew", "commit", "claim", "settle", "filter", "covered", "close")


class RepeatingClient(Redis):
    """Sends the call of a script twice while `twice` is set, as a client does whose connection broke before the
    answer."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(connection_pool=redis.connection_pool)
        self.twice = False
        self.repeated = 0
        """Number of calls that were sent twice."""
        self._names = {redis.register_script(script_source(name)).sha: name for name in SENT_TWICE}

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        first = await super().execute_command(*args, **options)
        if self.twice and args[0] == "EVALSHA" and args[1] in self._names:
            second = await super().execute_command(*args, **options)
            self.repeated += 1
            if self._names[args[1]] not in ("covered", "close"):  # these count what they did
                assert second == first
        return first


class Parties:
    """Workers and learners, each with what it remembers; `act` lets one of them make one call."""

    def __init__(self, redis: Redis, job_id: str, limits: Limits) -> None:
        self.redis, self.keys, self.limits = redis, JobKeys(job_id), limits
        self.clock = Clock()
        self.client = RepeatingClient(redis)
        self.ledger = Ledger(self.client, job_id, self.clock)
        self.held: list[list[Lease]] = [[], [], []]
        self.versions = [0, 0, 0]
        self.every_lease: list[Lease] = []
        self.terms: list[Term] = []
        self.claims: list[tuple[Term, Claim]] = []
        self.closed = False

    async def act(self, name: str, which: int) -> None:
        self.client.twice = which % 3 == 0
        await getattr(self, name)(which)
        await self.check()

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, which: int) -> None:
        worker = which % len(self.held)
        admission = await self.ledger.admit(f"w{worker}", self.versions[worker], 1 + which % 7, LEASE_SECONDS)
        if admission.refusal is Refusal.BEHIND:
            self.versions[worker] = admission.version
        self.held[worker] += admission.leases
        self.every_lease += admission.leases

    async def renew(self, which: int) -> None:
        worker = which % len(self.held)
        lost = await self.ledger.renew(self.held[worker], LEASE_SECONDS)
        self.held[worker] = [lease for lease in self.held[worker] if lease.group_id not in lost]

    async def commit(self, which: int) -> None:
        held = self.held[which % len(self.held)]
        for _ in range(min(len(held), 1 + which % 3)):
            await self._commit(held.pop(which % len(held)))

    async def commit_late_or_again(self, which: int) -> None:
        if self.every_lease:
            await self._commit(self.every_lease[which % len(self.every_lease)])

    async def _commit(self, lease: Lease) -> None:
        before = await self.dump()
        newest = (await self.ledger.newest())[0]
        group = a_group(lease.group_id, sorted({lease.version, newest}))
        state = (await run(self.redis.hget(self.keys.group(lease.group_id), "state"))).decode()
        outcome = await self.ledger.commit(lease, group)
        if (
            outcome is TransitionOutcome.FENCED or state != "leased"
        ):  # fenced, or the answer to a commit that was taken before
            assert await self.dump() == before

    async def fail(self, which: int) -> None:
        if held := self.held[which % len(self.held)]:
            outcome = (TransitionOutcome.REWARD_FAILED, TransitionOutcome.GENERATION_FAILED)[which % 2]
            await self.ledger.fail(held.pop(), outcome, "a reason\nof two lines", attempts=1 + which % 3)

    async def release(self, which: int) -> None:
        worker = which % len(self.held)
        await self.ledger.release(self.held[worker])
        self.held[worker] = []

    async def worker_vanishes(self, which: int) -> None:
        self.held[which % len(self.held)] = []

    async def time_passes(self, which: int) -> None:
        self.clock.now += which % (LEASE_SECONDS // 2)

    # ── learners: every term ever given may still act ────────────────────────────────────────────────────────────────

    async def enlist(self, which: int) -> None:
        self.terms.append(await self.ledger.enlist())

    def term(self, which: int) -> Term | None:
        recent = [*self.terms[-1:] * 4, *self.terms]
        return recent[which % len(recent)] if recent else None

    async def claim(self, which: int) -> None:
        if term := self.term(which):
            claim = await self.ledger.claim(term, self.limits, ("mask", "drop", "wait")[which % 3])
            if claim.groups:
                self.claims.append((term, claim))

    async def settle(self, which: int) -> None:
        if not self.claims:
            return
        term, claim = self.claims.pop() if which % 4 else self.claims[which % len(self.claims)]
        versions = [int(v) for g in claim.groups for c in g.completions for v in c.versions]
        tokens = Counter(claim.version - v for v in versions)
        young = {age: n for age, n in tokens.items() if age <= self.limits.max_staleness}
        masked = sum(tokens.values()) - sum(young.values())
        step = Step(claim.version, tuple(g.group_id for g in claim.groups), young, masked)
        await self.ledger.settle(term, step, f"v{claim.version + 1}-t{term.number}")

    async def filter(self, which: int) -> None:
        if self.claims:
            term, claim = self.claims.pop()
            await self.ledger.filter(term, [g.group_id for g in claim.groups][: 1 + which % 2], "no use\nfor it")

    async def covered(self, which: int) -> None:
        await self.ledger.forget_before(which % 12)

    async def close(self, which: int) -> None:
        if which % 40 == 0:
            await self.ledger.close("the user\ncancelled")
            self.closed = True

    # ── invariants ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def dump(self) -> dict[bytes, Any]:
        """All that Redis holds of the job, without the count of fenced commits."""
        found: dict[bytes, Any] = {}
        for key in sorted(await run(self.redis.keys("*" + self.keys.job_id + "*"))):
            kind = await run(self.redis.type(key))
            if kind == b"hash":
                found[key] = await run(self.redis.hgetall(key))
                found[key].pop(b"fenced", None)
            elif kind == b"zset":
                found[key] = await run(self.redis.zrange(key, 0, -1, withscores=True))
            elif kind == b"list":
                found[key] = await run(self.redis.lrange(key, 0, -1))
            else:
                found[key] = await run(self.redis.xrange(key))
        return found

    async def check(self) -> None:
        books = await self.ledger.counts()
        assert books.balanced, books
        states = await self._states(books.admitted)
        assert Counter(states.values()) == Counter({s: n for s, n in books.states.items() if n})
        for state, key in (("leased", self.keys.leases), ("queued", self.keys.queued), ("claimed", self.keys.claimed)):
            members = {int(g) for g in await run(self.redis.zrange(key, 0, -1))}
            assert members == {g for g, s in states.items() if s == state}, state
        outstanding = sum(books.states[s] for s in LIVE)
        assert outstanding <= (self.limits.max_staleness + 1) * self.limits.batch_size
        assert books.states["trained"] + outstanding <= self.limits.total_groups
        assert books.largest_age <= self.limits.max_staleness
        await self._check_stream(states, await self._check_steps(states))
        if self.closed:
            assert outstanding == 0
            assert (await self.ledger.admit("w", 99, 1, 1)).refusal is Refusal.CLOSED

    async def _states(self, admitted: int) -> dict[int, str]:
        async with self.redis.pipeline(transaction=True) as pipe:
            for group_id in range(admitted + 1):
                pipe.hmget(self.keys.group(group_id), ["state", "history"])
            *found, beyond = await pipe.execute()
        assert beyond == [None, None]
        for state, history in found:
            passed = [line.split("\t")[0] for line in history.decode().splitlines()]
            assert state.decode() == passed[-1]
            assert not set(passed[:-1]) & set(TERMINAL), passed  # a terminal state is the last
        return {group_id: state.decode() for group_id, (state, _) in enumerate(found)}

    async def _check_steps(self, states: dict[int, str]) -> dict[int, int]:
        """{trained group: the version it updated}: no group is in two steps."""
        steps = await self.ledger.steps()
        assert [s.version for s in steps] == list(range((await self.ledger.newest())[0]))
        trained = [(g, s.version) for s in steps for g in s.groups]
        assert len(dict(trained)) == len(trained)
        assert set(dict(trained)) == {g for g, s in states.items() if s == "trained"}
        return dict(trained)

    async def _check_stream(self, states: dict[int, str], trained: dict[int, int]) -> None:
        covered = int(await run(self.redis.hget(self.keys.ledger, "covered")) or 0)
        kept = [int(fields[b"group"]) for _, fields in await run(self.redis.xrange(self.keys.groups))]
        wanted = {g for g, s in states.items() if s in ("queued", "claimed")}
        wanted |= {g for g, version in trained.items() if version >= covered}
        assert sorted(kept) == ([] if self.closed else sorted(wanted))


COMMON = ("admit", "commit", "claim", "settle", "time_passes")
RARE = (
    *("renew", "commit_late_or_again", "fail", "release", "worker_vanishes"),
    *("enlist", "filter", "covered", "close"),
)
ACTS = st.lists(st.tuples(st.sampled_from(COMMON * 3 + RARE), st.integers(0, 10_000)), min_size=20, max_size=70)
_jobs = itertools.count()


@given(acts=ACTS, batch_size=st.integers(1, 3), bound=st.sampled_from([0, 1, 2, 4]), steps=st.integers(2, 6))
@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the fixture is only a connection; every example has a job of its own
async def test_the_books_balance_after_every_call(
    redis: Redis, acts: list[tuple[str, int]], batch_size: int, bound: int, steps: int
) -> None:
    parties = Parties(redis, f"ftjob-balance-{next(_jobs)}", Limits(batch_size, bound, steps * batch_size))
    await parties.ledger.open(parties.limits)
    await parties.enlist(0)
    for name, which in acts:
        await parties.act(name, which)
    await parties.act("close", 0)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 16))])
async def test_the_books_balance_through_long_schedules(redis: Redis, seed: int) -> None:
    """Whole jobs, too long for an example that hypothesis could make smaller."""
    rng = random.Random(seed)
    batch_size = rng.randint(1, 3)
    limits = Limits(batch_size, (0, 1, 2, 4)[seed % 4], rng.randint(3, 9) * batch_size)
    parties = Parties(redis, f"ftjob-long-{seed}", limits)
    await parties.ledger.open(limits)
    await parties.enlist(0)
    for _ in range(250):
        await parties.act(rng.choice(COMMON * 4 + RARE), rng.randrange(10_000))
    books = await parties.ledger.counts()
    assert parties.client.repeated > 0
    assert parties.closed or books.states["trained"] > 0  # the schedule did get somewhere
    await parties.act("close", 0)


async def test_racing_parties_leave_balanced_books(redis: Redis) -> None:
    """The same calls, but at once: five workers and three learners on their own connections."""
    limits = Limits(batch_size=2, max_staleness=2, total_groups=40)
    await Ledger(redis, "ftjob-race").open(limits)

    async def work(name: str) -> None:
        ledger = Ledger(redis, "ftjob-race")
        while True:
            version, _ = await ledger.newest()
            admission = await ledger.admit(name, version, 2, lease_seconds=0.02)
            if admission.refusal is Refusal.CLOSED:
                return
            for lease in admission.leases:
                await ledger.commit(lease, a_group(lease.group_id, [lease.version]))

    async def learn() -> list[int]:
        ledger = Ledger(redis, "ftjob-race")
        term, mine = await ledger.enlist(), list[int]()
        while (await ledger.counts()).states["trained"] < limits.total_groups:
            claim = await ledger.claim(term, limits, "mask")
            if claim.outcome is TransitionOutcome.FENCED:
                return mine
            step = Step(claim.version, tuple(g.group_id for g in claim.groups), {}, 0)
            if claim.groups and await ledger.settle(term, step, f"v{claim.version + 1}") is TransitionOutcome.SETTLED:
                mine += step.groups
        await ledger.close("finished")
        return mine

    async with asyncio.timeout(60):
        workers = [asyncio.create_task(work(f"w{i}")) for i in range(5)]
        trained = await asyncio.gather(learn(), learn(), learn())
        await asyncio.gather(*workers)
    every = [g for mine in trained for g in mine]
    assert len(every) == len(set(every)) == limits.total_groups
    books = await Ledger(redis, "ftjob-race").counts()
    assert books.balanced
    assert books.states["trained"] == limits.total_groups
