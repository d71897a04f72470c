"""The job store: a job's record, status, events, checkpoints and heartbeats. Redis is the only place that has them.

Invariants: a job's status changes only along `_NEXT` (compare-and-set in Redis: a cancel and a finish cannot both win).
`at_rest` holds only as long as the job keeps the status for which its controller set it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ..errors import Damaged, InvalidState, NotFound
from ..redis_access import keys
from ..redis_access.client import run
from ..redis_access.json_records import UNREADABLE, damaged, decode_records, log_damaged_once
from ..redis_access.keys import JobKeys
from ..redis_access.scripts import Script
from ..types.events import encoded
from ..types.job import ENDED, Checkpoint, Event, Job, JobError, PausedBy, Status, event_id
from ..types.metrics import Metrics, RewardMetrics, WorkerMetrics
from .history import EVENTS, MEASURED, History, event_of, readable_entries

_NEXT: dict[str, tuple[Status, ...]] = {
    "validating_files": ("queued", "failed", "cancelled"),
    "queued": ("running", "paused", "failed", "cancelled"),
    "running": ("paused", "succeeded", "failed", "cancelled"),
    "paused": ("queued", "failed", "cancelled"),
}
_CHANGING = ("status", "finished_at", "fine_tuned_model", "trained_tokens", "error", "paused_by", "pace", "at_rest")
_OUTCOMES: dict[type, str] = {PausedBy: "paused_by", JobError: "error", str: "fine_tuned_model"}
_STATUSES: dict[bytes, Status] = {status.encode(): status for status in get_args(Status)}
_LIVE = b"live:"
"""Fields of the job's hash that hold a changed setting (lua/change.lua)."""
_LiveValue = int | float | None
_ALL_ENTRIES = 1_000_000
"""More entries than a job has of any kind."""
_json = msgspec.json


class JobStatus(NamedTuple):
    """What a controller manager needs to decide whether a job needs a controller."""

    id: str
    status: Status
    at_rest: bool


class JobStore:
    """All jobs. With `owner`, `get`, `ids` and `all` return only that owner's. Methods raise `NotFound` for a job that
    does not exist."""

    def __init__(self, redis: Redis, owner: str | None = None) -> None:
        self._redis = redis
        self._owner = owner
        self._move, self._rest = (Script(redis, name) for name in ("move", "rest"))
        self.history = History(redis)

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, job: Job) -> bool:
        """Store a new job atomically. False, and nothing changed, if another job has its id.

        A repeated call (after a lost connection) changes nothing, and gets the same answer.
        """
        key, document = JobKeys(job.id).job, _json.encode(job)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key, "document", document)
            pipe.hsetnx(key, "owner", job.owner)
            pipe.hsetnx(key, "status", job.status)
            pipe.zadd(keys.JOBS, {job.id: job.created_at}, nx=True)
            pipe.hget(key, "document")
            *_, stored = await pipe.execute()
        return bool(stored == document)

    async def get(self, job_id: str) -> Job:
        """The job's present record. Raises `Damaged` where it cannot be read."""
        raw = await run(self._redis.hgetall(JobKeys(job_id).job))
        if not self._is_visible(raw):
            raise NotFound(f"no job {job_id!r}", param="fine_tuning_job_id")
        return _job(job_id, raw)

    def _is_visible(self, raw: dict[bytes, bytes]) -> bool:
        return bool(raw) and (self._owner is None or raw.get(b"owner") == self._owner.encode())

    async def ids(self) -> list[str]:
        """Ids of every job, newest first."""
        if self._owner is not None:
            return [job.id for job in await self.all()]
        return [i.decode() for i in await run(self._redis.zrevrange(keys.JOBS, 0, -1))]

    async def all(self) -> list[Job]:
        """Every readable job, newest first, in two round trips. Damaged ones are logged."""
        jobs, damaged_jobs = await self.readable_and_damaged()
        for error in damaged_jobs.values():
            log_damaged_once(error)
        return jobs

    async def readable_and_damaged(self) -> tuple[list[Job], dict[str, Damaged]]:
        """(readable jobs, newest first; the error of each damaged job, by id), in two round trips."""
        ids = [i.decode(errors="replace") for i in await run(self._redis.zrevrange(keys.JOBS, 0, -1))]
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(JobKeys(job_id).job)
            found = await pipe.execute(raise_on_error=False)
        jobs: list[Job] = []
        damaged_jobs: dict[str, Damaged] = {}
        for job_id, raw in zip(ids, found, strict=True):
            if isinstance(raw, ResponseError):  # the value at the job's key is not a hash
                damaged_jobs[job_id] = damaged(JobKeys(job_id).job, raw)
                continue
            try:
                if self._is_visible(raw):
                    jobs.append(_job(job_id, raw))
            except Damaged as error:
                damaged_jobs[job_id] = error
        return jobs, damaged_jobs

    async def statuses(self) -> list[JobStatus]:
        """The status of every readable job, oldest first, in two round trips that do not read the documents."""
        ids = [i.decode(errors="replace") for i in await run(self._redis.zrange(keys.JOBS, 0, -1))]
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(JobKeys(job_id).job, ["status", "at_rest"])
            found = await pipe.execute(raise_on_error=False)
        statuses = []
        for job_id, raw in zip(ids, found, strict=True):
            status = None if isinstance(raw, ResponseError) else _STATUSES.get(raw[0])
            if status is not None:  # else the record is damaged: `readable_and_damaged` reports it
                statuses.append(JobStatus(job_id, status, raw[1] == b"true"))
        return statuses

    async def move(self, job_id: str, to: Status, outcome: PausedBy | JobError | str | None = None) -> None:
        """Change the status. `outcome`: why the job paused by itself, why it failed, or the name of the trained model.

        Raises `InvalidState`, and changes nothing, when the present status does not permit this one. A damaged status
        permits `failed` and `cancelled`, so that a damaged job can always be ended.
        """
        allowed = [s for s, following in _NEXT.items() if to in following]
        finished = repr(time.time()) if to in ENDED else ""
        field = "" if outcome is None else _OUTCOMES[type(outcome)]
        value = outcome if isinstance(outcome, str) else _json.encode(outcome)
        known = " ".join(_STATUSES.values()) if to in ("failed", "cancelled") else ""
        call = secrets.token_hex(8)
        done = await self._move(JobKeys(job_id), "", call, to, finished, field, value, known, *allowed)
        if done is None:
            raise NotFound(f"no job {job_id!r}", param="fine_tuning_job_id")
        if done != b"ok":
            if done not in _STATUSES:
                raise damaged(f"{JobKeys(job_id).job} status", f"it says {done!r}")
            raise InvalidState(f"job {job_id} is {done.decode()}; it cannot become {to}")

    async def status(self, job_id: str) -> Status:
        """The job's status, even if other fields are damaged. Raises `Damaged` where the status itself is."""
        key = JobKeys(job_id).job
        raw = await run(self._redis.hget(key, "status"))
        if raw is None:
            raise NotFound(f"no job {job_id!r}", param="fine_tuning_job_id")
        if raw not in _STATUSES:
            raise damaged(f"{key} status", f"it says {raw!r}")
        return _STATUSES[raw]

    async def mark_at_rest(self, job_id: str, status: Status) -> bool:
        """Record that a job which ended or paused with this `status` has stopped.

        False, and nothing changed, if its status is another by now: then there is more to do for it.
        """
        return bool(await self._rest(JobKeys(job_id), "", secrets.token_hex(8), status) == b"ok")

    async def update(self, job_id: str, *, trained_tokens: int) -> None:
        """Set the job's figures that grow with each step."""
        await run(self._redis.hset(JobKeys(job_id).job, "trained_tokens", str(trained_tokens)))

    # ── events and metrics ───────────────────────────────────────────────────────────────────────────────────────────

    async def emit_event(
        self,
        job_id: str,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        type: Literal["message", "metrics"] = "message",
        data: msgspec.Struct | None = None,
    ) -> Event:
        """Append an event. `data`: a struct of `types.events`, for programs; `message` is for people."""
        event = Event("", time.time(), level, message, type, None if data is None else encoded(data))
        number = await self.history.append_event(job_id, _json.encode(event), event.created_at)
        return msgspec.structs.replace(event, id=event_id(job_id, number))

    async def events(self, job_id: str) -> list[tuple[int, Event]]:
        """(number, event) of every event, oldest first."""
        found = await self.history.after(job_id, 0, _ALL_ENTRIES, kinds=EVENTS)
        return [(e.number, event_of(job_id, e)) for e in found]

    async def record(self, job_id: str, metrics: Metrics) -> None:
        """Append a measurement to the job's history."""
        await self.history.record(job_id, metrics)

    async def metrics(self, job_id: str) -> list[tuple[int, str, dict[str, Any]]]:
        """(number, kind, data) of every measurement, oldest first."""
        found = await self.history.after(job_id, 0, _ALL_ENTRIES, kinds=MEASURED)
        return [(e.number, e.kind, _json.decode(e.data)) for e in readable_entries(job_id, found)]

    # ── checkpoints and workers ──────────────────────────────────────────────────────────────────────────────────────

    async def add_checkpoint(self, job_id: str, checkpoint: Checkpoint) -> None:
        """Record a complete checkpoint, which is offered from now on."""
        await run(self._redis.hset(JobKeys(job_id).checkpoints, str(checkpoint.step), _json.encode(checkpoint)))

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The job's checkpoints, newest first."""
        return (await self.checkpoints_of([job_id]))[0]

    async def checkpoints_of(self, job_ids: Sequence[str]) -> list[list[Checkpoint]]:
        """The checkpoints of each of the jobs, newest first, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(JobKeys(job_id).checkpoints)
            found = await pipe.execute() if job_ids else []
        return [_checkpoints(job_id, raw) for job_id, raw in zip(job_ids, found, strict=True)]

    async def remove_checkpoint(self, job_id: str, step: int) -> None:
        """Remove the record of a checkpoint. Removing a job's newest one removes its `fine_tuned_model` too."""
        newest = (await self.checkpoints(job_id))[:1]
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(JobKeys(job_id).checkpoints, str(step))
            if newest and newest[0].step == step:
                pipe.hdel(JobKeys(job_id).job, "fine_tuned_model")
            await pipe.execute()

    async def record_heartbeat(self, job_id: str, metrics: WorkerMetrics) -> None:
        """Store a worker's heartbeat as its newest one, and append it to the job's metrics."""
        await run(self._redis.hset(JobKeys(job_id).workers, metrics.worker, _json.encode(metrics)))
        await self.record(job_id, metrics)

    async def record_worker_start(self, job_id: str, worker: str, role: str) -> None:
        """Store the state `starting` of a worker whose process is up. Its heartbeats begin later."""
        metrics = WorkerMetrics(
            worker=worker, role=role, state="starting", time=time.time(), version=0, uptime=0, busy=0, waiting={}
        )
        await run(self._redis.hset(JobKeys(job_id).workers, worker, _json.encode(metrics)))

    async def workers(self, job_id: str) -> list[WorkerMetrics]:
        """The newest heartbeat of each worker."""
        raw = await run(self._redis.hgetall(JobKeys(job_id).workers))
        return decode_records(_within(JobKeys(job_id).workers, raw), WorkerMetrics)

    async def record_reward(self, job_id: str, metrics: RewardMetrics) -> None:
        """Store the reward's figures in one worker, per start of the worker, and append them to the job's metrics."""
        start = f"{metrics.worker} {metrics.started}"
        await run(self._redis.hset(JobKeys(job_id).rewards, start, _json.encode(metrics)))
        await self.record(job_id, metrics)

    async def rewards(self, job_id: str) -> list[RewardMetrics]:
        """The newest figures of each start of each worker; their sums are the reward's figures of the whole job."""
        return rewards_of(job_id, await run(self._redis.hgetall(JobKeys(job_id).rewards)))


def rewards_of(job_id: str, raw: Mapping[bytes, bytes]) -> list[RewardMetrics]:
    """Decodes the hash of a job's reward figures (`JobKeys.rewards`)."""
    return decode_records(_within(JobKeys(job_id).rewards, raw), RewardMetrics)


def _checkpoints(job_id: str, raw: Mapping[bytes, bytes]) -> list[Checkpoint]:
    """Decodes the hash of a job's checkpoints, newest first."""
    return sorted(decode_records(_within(JobKeys(job_id).checkpoints, raw), Checkpoint), key=lambda c: -c.step)


def _within(key: str, raw: Mapping[bytes, bytes]) -> list[tuple[str, bytes]]:
    """(key and field, value) of each field of a hash, sorted by field: what `decode_records` takes."""
    return [(f"{key} {field.decode(errors='replace')}", record) for field, record in sorted(raw.items())]


def _job(job_id: str, raw: dict[bytes, bytes]) -> Job:
    """Decodes a job's hash: its document, the fields beside it, and changed settings. Raises `Damaged`."""
    try:
        document = _json.decode(raw.get(b"document", b""), type=dict[str, Any])
        for field in _CHANGING:
            value = raw.get(field.encode())
            if value is not None:
                document[field] = value.decode() if field in ("status", "fine_tuned_model") else _json.decode(value)
        live = {
            field.removeprefix(_LIVE).decode(): _json.decode(value, type=_LiveValue)
            for field, value in raw.items()
            if field.startswith(_LIVE)
        }
        job = msgspec.convert(document, Job)
    except UNREADABLE as error:
        raise damaged(JobKeys(job_id).job, error) from error
    if job.id != job_id:
        raise damaged(JobKeys(job_id).job, f"it says that it is job {job.id!r}")
    return msgspec.structs.replace(job, hyperparameters=job.hyperparameters | live) if live else job
