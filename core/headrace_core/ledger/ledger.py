"""The ledger: every group that is ever admitted ends in exactly one terminal state.

                 ┌──────────── lease expired, given back, or retried ───────────┐
                 ▼                                                              │
    admit ──► leased ──commit──► queued ──claim──► claimed ──settle──► trained   │
                 │                 │  ▲                │                        │
                 │                 │  └── learner replaced                       │
                 ├─► reward_failed │                   └─► filtered              │
                 ├─► generation_failed                                          │
                 │                 └─► dropped_stale                             │
                 └──────────────── close: leased, queued, claimed ─► cancelled

Invariants, at any moment and across any crash:

* admitted = leased + queued + claimed
             + trained + dropped_stale + filtered + reward_failed + generation_failed + cancelled;
* a group is committed under the newest lease only: an expired lease is issued again with another token, and a late
  commit under the old token is refused (`TransitionOutcome.FENCED`: a lost race, not an error);
* one learner term at a time may claim and settle; a step's groups, its record and the new policy version become true
  together;
* an encoded group stays in the stream until a checkpoint covers the step that trained it;
* if the job has a share of Redis' memory, no group is admitted beyond it, except those that the next step lacks.

Each transition is one Lua script (lua/*.lua), atomic in Redis. Times are Redis' own unless a clock is given. A call may
arrive twice, because the client repeats it if its connection broke before the answer; it is counted once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from redis.asyncio import Redis

from ..errors import InvalidRequest, NotFound, WireError
from ..redis_access.client import run
from ..redis_access.json_records import decode_record, entry_id, text, whole_number
from ..redis_access.keys import JobKeys
from ..redis_access.scripts import Script
from ..types.staleness import Late, Limits, Pending, Window, select
from ..types.trajectory import Group, decode, encode
from .counts import LedgerCounts, Queues, counts_of_ledger, queues_of
from .records import Admission, Claim, Lease, Refusal, StalenessBoundViolated, Step, Term, TransitionOutcome
from .transitions import Transition, transitions_in

MAX_LEASE_EXPIRIES = 5
"""A group whose leases expired this often ends as generation_failed: it seems to kill the workers that generate it."""
MAX_BLOCK_SECONDS = 20.0
"""A blocking read must end before the socket's time limit (`client.connect`)."""
_SCRIPTS = (
    *("admit", "renew", "commit", "fail", "release", "lapse"),
    *("enlist", "window", "claim", "settle", "filter", "covered"),
    *("close", "queues"),
)
_CONTRADICTION = b"contradiction: "


class Ledger:
    """One job's ledger. Every method is one atomic transition or one consistent read.

    `clock` gives Unix seconds; None: Redis' own clock.
    """

    def __init__(self, redis: Redis, job_id: str, clock: Callable[[], float] | None = None) -> None:
        self._redis = redis
        self._keys = JobKeys(job_id)
        self._clock = clock
        self._scripts = {name: Script(redis, name) for name in _SCRIPTS}

    async def _run(self, script: str, *args: Any) -> Any:
        now = "" if self._clock is None else repr(self._clock())
        return await self._scripts[script](self._keys, now, *args)

    # ── the job ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, limits: Limits) -> None:
        """Create the ledger, or set its limits anew. `limits.max_staleness` holds until the first change in the
        settings log."""
        if limits.batch_size < 1 or limits.max_staleness < 0 or limits.total_groups < 1:
            raise InvalidRequest(f"batch_size and total_groups must be positive, max_staleness not negative: {limits}")
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.ledger, mapping={name: str(limit) for name, limit in asdict(limits).items()})
            pipe.hsetnx(self._keys.ledger, "version", "0")
            await pipe.execute()

    async def close(self, reason: str) -> int:
        """Cancel every group in progress, and refuse all further transitions. Returns how many were cancelled.

        Idempotent. If the job's status says that it has ended, the encoded groups are deleted, too.
        """
        return int(await self._run("close", reason))

    async def counts(self) -> LedgerCounts:
        """The ledger's counts, from one atomic read. Raises `Damaged`."""
        return counts_of_ledger(self._keys.job_id, await run(self._redis.hgetall(self._keys.ledger)))

    async def queues(self) -> Queues:
        """The groups in each live state, with their oldest time and version, from one atomic read."""
        return queues_of(await self._run("queues"))

    async def allot(self, share: int) -> None:
        """Limit the job's encoded groups to `share` bytes of Redis' memory from now on; 0: no limit."""
        await run(self._redis.hset(self._keys.ledger, "share", str(share)))

    async def needs_checkpoint(self) -> bool:
        """Whether a checkpoint is due early, because the stored groups take more than half of the job's share.

        A checkpoint lets the groups go that are stored for a replay only.
        """
        share, held = await run(self._redis.hmget(self._keys.ledger, ["share", "bytes"]))
        where = self._keys.ledger
        return 0 < whole_number(share, f"{where} share") < 2 * whole_number(held, f"{where} bytes")

    async def newest(self) -> tuple[int, str | None]:
        """(newest policy version, its name in the weight store; None: the base model)."""
        version, weights = await run(self._redis.hmget(self._keys.ledger, ["version", "weights"]))
        where = self._keys.ledger
        name = None if weights is None else text(weights, f"{where} weights")
        return whole_number(version, f"{where} version"), name

    async def history(self, group_id: int) -> list[Transition]:
        """All transitions of one group. Raises `NotFound` if it was never admitted, or its history is deleted.

        Histories remain of the newest 1,000 groups that failed, of the newest 5,000 that ended otherwise and are not
        needed for a recovery, and of all others.
        """
        raw = await run(self._redis.hget(self._keys.group(group_id), "history"))
        if raw is None:
            if group_id < (await self.counts()).admitted:
                raise NotFound(
                    f"the history of group {group_id} is forgotten: it ended, and of those a job keeps the newest"
                )
            raise NotFound(f"no group {group_id} was ever admitted in this job")
        return transitions_in(raw, f"{self._keys.group(group_id)} history")

    async def signal(self, after: str, timeout: float) -> str:
        """Wait at most `timeout` seconds until something has changed since `after` ('0', or an earlier answer).

        Returns the position to pass as `after` next time. It returns after MAX_BLOCK_SECONDS seconds at the latest,
        with `after` itself if nothing changed. An expiring lease gives no signal: a caller that waits for one must
        poll.
        """
        milliseconds = max(1, int(min(timeout, MAX_BLOCK_SECONDS) * 1000))
        found = await run(self._redis.xread({self._keys.signals: after}, block=milliseconds))
        return found[0][1][-1][0].decode() if found else after

    # ── the rollout worker ───────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, worker: str, version: int, want: int, lease_seconds: float) -> Admission:
        """Lease up to `want` groups to a worker that samples with policy `version`."""
        given = await self._run("admit", worker, version, want, lease_seconds, MAX_LEASE_EXPIRIES)
        refusal = given[0].decode()
        leases = tuple(Lease(int(g), token.decode(), int(a), int(v)) for g, token, a, v in given[2:])
        return Admission(leases, Refusal(refusal) if refusal else None, int(given[1]))

    async def renew(self, leases: Iterable[Lease], lease_seconds: float) -> set[int]:
        """Prolong leases. Returns the groups whose lease is lost; the worker must stop generating them."""
        held = [x for lease in leases for x in (lease.group_id, lease.token)]
        return {int(g) for g in await self._run("renew", lease_seconds, *held)} if held else set()

    async def commit(self, lease: Lease, group: Group) -> TransitionOutcome:
        """Hand in a finished group. Returns QUEUED, or FENCED if the lease is lost.

        Raises `StalenessBoundViolated` if a token is older than the lease: the setting `late: wait` relies on there
        being none.
        """
        if group.group_id != lease.group_id:
            raise ValueError(f"group {group.group_id} does not belong to the lease of group {lease.group_id}")
        oldest = group.oldest_version
        if oldest < lease.version:
            raise StalenessBoundViolated(
                f"group {group.group_id} has a token of version {oldest}, its lease is of {lease.version}"
            )
        tokens, trainable = group.sampled_tokens, json.dumps(group.trainable_by_version)
        done = await self._run("commit", lease.group_id, lease.token, oldest, tokens, encode(group), trainable)
        return TransitionOutcome(done.decode())

    async def fail(self, lease: Lease, outcome: TransitionOutcome, reason: str, attempts: int = 1) -> TransitionOutcome:
        """Report a failure of a group. `outcome` is REWARD_FAILED or GENERATION_FAILED.

        Returns `outcome`, in which the group ends, if this was failure number `attempts` of it; LEASED before that,
        when it will be leased again; or FENCED.
        """
        if outcome not in (TransitionOutcome.REWARD_FAILED, TransitionOutcome.GENERATION_FAILED):
            raise ValueError(f"a group cannot fail as {outcome}")
        done = await self._run("fail", lease.group_id, lease.token, outcome.value, attempts, reason[:500])
        return TransitionOutcome(done.decode())

    async def release(self, leases: Iterable[Lease]) -> int:
        """Give leases back unused, so that any worker can take them at once. Returns how many were still valid."""
        held = [x for lease in leases for x in (lease.group_id, lease.token)]
        return int(await self._run("release", *held)) if held else 0

    async def expire_leases_of(self, worker: str) -> int:
        """End the leases of a worker whose process has died, rather than wait for their expiry. Returns how many."""
        return int(await self._run("lapse", worker))

    # ── the learner ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def enlist(self) -> Term:
        """Begin a learner's term. It fences out the learner before it, whose claimed groups are queued again."""
        number, version = await self._run("enlist")
        return Term(int(number), int(version))

    async def window(self) -> Window:
        """The policy version and every queued or leased group, from one atomic read."""
        version, queued, leased = await self._run("window")
        return Window(int(version), _pending(queued), _pending(leased))

    async def claim(self, term: Term, limits: Limits, late: Late, held: int = 0, changes: int = 0) -> Claim:
        """Claim the next batch, if `staleness.select` finds one. `held`: groups of the batch that are claimed already.

        The outcome is GONE if a selected group is no longer queued, or the settings log has more than the `changes`
        entries that the caller has read. It is FENCED or CLOSED even if there is no batch, so that a waiting learner
        learns of its end.
        """
        window = await self.window()
        selection = select(window, limits.batch_size, limits.max_staleness, late, held)
        call = secrets.token_hex(8)
        selected = (len(selection.take), *selection.take, *selection.drop)
        claimed = await self._run("claim", term.number, call, changes, *selected)
        if isinstance(claimed, bytes):
            return Claim(window.version, selection=selection, outcome=TransitionOutcome(claimed.decode()))
        groups = tuple(map(_group, selection.take, claimed))
        return Claim(window.version, groups, selection)

    async def filter(self, term: Term, groups: Sequence[int], reason: str) -> TransitionOutcome:
        """Give up claimed groups that the algorithm cannot use. Returns FILTERED; or FENCED or CLOSED, and nothing
        changed."""
        return TransitionOutcome((await self._run("filter", term.number, reason, *groups)).decode())

    async def settle(self, term: Term, step: Step, weights: str) -> TransitionOutcome:
        """Record a step, its groups as trained, and `weights` as policy version step.version + 1, all in one.

        Returns SETTLED; or FENCED or CLOSED, and nothing changed. Raises `StalenessBoundViolated`, and changes nothing,
        if the step trained on a token older than max_staleness, or its ages are not those of the committed tokens.
        """
        if len(set(step.groups)) != len(step.groups):
            raise ValueError(f"step of version {step.version} names a group twice: {step.groups}")
        oldest, record = max(step.ages, default=0), json.dumps(asdict(step))
        done = await self._run(
            "settle", term.number, step.version, weights, oldest, step.masked_tokens, record, *step.groups
        )
        if done == b"too_old":
            raise StalenessBoundViolated(f"step of version {step.version} trained on a token of age {oldest}")
        if done.startswith(_CONTRADICTION):
            reason = done.removeprefix(_CONTRADICTION).decode()
            raise StalenessBoundViolated(f"step of version {step.version} contradicts its groups: {reason}")
        return TransitionOutcome(done.decode())

    async def steps(self, start: int = 0) -> list[Step]:
        """Records of the settled steps from policy version `start` on, in order.

        Of steps that two checkpoints cover, only the newest 5,000 have a record.
        """
        settled = range(start, (await self.newest())[0])
        found = await run(self._redis.hmget(self._keys.steps, [str(v) for v in settled])) if settled else []
        records = [(f"{self._keys.steps} {v}", record) for v, record in zip(settled, found, strict=True) if record]
        return [decode_record(record, Step, where) for where, record in records]

    async def trained_tokens(self) -> int:
        """How many tokens contributed to all settled steps, those whose records are deleted included."""
        forgotten = await run(self._redis.hget(self._keys.ledger, "forgotten_tokens"))
        recorded = sum(sum(step.ages.values()) for step in await self.steps())
        return whole_number(forgotten, f"{self._keys.ledger} forgotten_tokens") + recorded

    async def groups(self, ids: Iterable[int]) -> list[Group]:
        """The committed groups with these ids, in this order.

        Raises `NotFound` for one that a checkpoint has covered, and after the job was closed.
        """
        messages = []
        for group_id in ids:
            entry = await run(self._redis.hget(self._keys.group(group_id), "entry"))
            place: Any = entry and entry_id(entry, f"{self._keys.group(group_id)} entry")
            found = await run(self._redis.xrange(self._keys.groups, place, place)) if entry else []
            if not found:
                raise NotFound(f"group {group_id} is no longer stored (job closed, or covered by a checkpoint?)")
            messages.append(_group(group_id, found[0][1].get(b"data", b"")))
        return messages

    async def forget_before(self, version: int) -> int:
        """Delete the encoded groups of the steps before `version`, which a checkpoint covers. Returns how many."""
        return int(await self._run("covered", version))


def _group(group_id: int, message: bytes) -> Group:
    """Decodes a group. Raises `WireError`, which names it."""
    try:
        return decode(message)
    except WireError as error:
        raise WireError(f"group {group_id} in Redis cannot be read: {error.message}") from error


def _pending(flat: list[int]) -> tuple[Pending, ...]:
    return tuple(Pending(int(g), int(v)) for g, v in zip(flat[::2], flat[1::2], strict=True))
