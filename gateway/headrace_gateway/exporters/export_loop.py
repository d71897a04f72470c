"""Exports a job's measurements to one sink, from the stored cursor to the newest entry, or until the job ends.

    history in Redis ──┐
    metrics by REST  ──┴─► Source ──► Sink ──► cursor.json: the last number, and how large the sink was then

Invariants: one exporter at a time writes to a folder (a file lock, which the system releases if the exporter dies). The
cursor is replaced after the sink's flush, and an exporter that starts truncates the sink to the cursor: so no entry is
missing or written twice.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace_core.errors import InvalidState
from headrace_core.jobs.history import MEASURED, page_of_entries
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.json_records import UNREADABLE
from headrace_core.storage.atomic_write import written_whole
from headrace_core.types.job import ENDED

from ..client import Client
from .series import point
from .sink import Sink, SinkEntry
from .sink_factory import create
from .targets import Target

BATCH = 1000
_CURSOR, _LOCK = "cursor.json", "export.lock"
_LOOK_SECONDS = 2.0


class Cursor(msgspec.Struct, frozen=True):
    """The position of an export."""

    number: int = 0
    """Number of the last entry that was written."""
    step: int = 0
    """Newest policy version up to that entry."""
    size: int = 0
    """Size of the sink's file after that entry, in bytes."""
    complete: bool = False
    """Whether the job has ended and all of its entries are written."""


class ExportRequest(msgspec.Struct, frozen=True):
    """The request that a process of `python -m headrace_gateway.exporters` reads from stdin."""

    redis_url: str
    job_id: str
    target: Target
    folder: str
    options: dict[str, Any] = {}


class Source(Protocol):
    """Where an export reads a job's measurements."""

    async def status(self) -> str:
        """The job's present status."""
        ...

    async def after(self, number: int) -> list[SinkEntry]:
        """At most `BATCH` entries after a number, oldest first."""
        ...


class FromRedis:
    """A job's measurements, read from Redis: used by the gateway's own processes."""

    def __init__(self, jobs: JobStore, job_id: str) -> None:
        self._jobs, self._id = jobs, job_id

    async def status(self) -> str:
        return (await self._jobs.get(self._id)).status

    async def after(self, number: int) -> list[SinkEntry]:
        entries, _ = await page_of_entries(self._jobs.history, self._id, number, BATCH, MEASURED)
        return [SinkEntry(e.number, e.kind, msgspec.json.decode(e.data)) for e in entries]


class FromGateway:
    """A job's measurements, read from the gateway's API."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client, self._id = client, job_id

    async def status(self) -> str:
        return str(self._client.job(self._id)["status"])

    async def after(self, number: int) -> list[SinkEntry]:
        entries = self._client.job(self._id, "/metrics", after=str(number), limit=BATCH)["data"]
        return [SinkEntry(int(e["id"]), e["kind"], e["data"]) for e in entries]


async def export(
    source: Source,
    target: Target,
    folder: Path,
    job: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    follow: bool,
    stop: asyncio.Event,
) -> Cursor:
    """Export the entries up to now; with `follow`, until the job has ended or is paused, or `stop` is set.

    `job` and `options` as `sink_factory.create` takes them. Raises `InvalidState` while another exporter has the
    folder.
    """
    with _held(folder):
        cursor = read_cursor(folder)
        sink = create(target, folder, cursor.size, job, options)
        try:
            return await _carried(source, sink, cursor, lambda c: _save(folder, c), follow, stop)
        finally:
            sink.close()


def read_cursor(folder: Path) -> Cursor:
    """The position of an export folder; the beginning if the folder is empty, or its file is shorter than the cursor
    says."""
    try:
        cursor = msgspec.json.decode((folder / _CURSOR).read_bytes(), type=Cursor)
    except (FileNotFoundError, *UNREADABLE):  # a cursor may be unreadable after a power loss
        return Cursor()
    if min(cursor.number, cursor.step, cursor.size) < 0:
        return Cursor()
    sinks = (f for f in folder.iterdir() if f.is_file() and f.name not in (_CURSOR, _LOCK))
    whole = cursor.size == 0 or any(f.stat().st_size >= cursor.size for f in sinks)
    return cursor if whole else Cursor()


async def _carried(
    source: Source, sink: Sink, cursor: Cursor, save: Callable[[Cursor], None], follow: bool, stop: asyncio.Event
) -> Cursor:
    while not stop.is_set():
        status = await source.status()  # read before the entries, so that none is missed when the job has ended
        entries = await source.after(cursor.number)
        step = cursor.step
        for entry in entries:
            made = point(entry.kind, entry.data, step)
            step = max(step, made.step)
            sink.write(entry, made)
        if entries:
            cursor = Cursor(entries[-1].number, step, sink.flush())
            save(cursor)
        elif status in ENDED:
            cursor = msgspec.structs.replace(cursor, complete=True)
            save(cursor)
            break
        elif not follow or status == "paused":
            break
        else:
            await _waited(stop)
    return cursor


async def _waited(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)
    except TimeoutError:
        return


def _save(folder: Path, cursor: Cursor) -> None:
    with written_whole(folder / _CURSOR) as file:
        file.write_bytes(msgspec.json.encode(cursor))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidState(f"{folder}: another export writes there") from error
        yield
