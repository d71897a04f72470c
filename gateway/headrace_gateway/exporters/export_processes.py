"""The gateway's side of exports: runs one process per running job and sink.

    HEADRACE_EXPORTS (files, of every job) ─┐
    the job's integrations (wandb)         ─┴─► python -m headrace_gateway.exporters ──► data folder / wandb
                                                   │ ended with an error: an event of the job, and a retry
                                                   ▼ after `ATTEMPTS`: an event; `headrace jobs export` can do it later

Invariants: no export delays or ends a job; however an export ends, the next one continues from its cursor.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.logs import get_logger
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.job import ENDED, Job

from .export_loop import ExportRequest, read_cursor
from .targets import Target

ATTEMPTS = 3
BACKOFF_SECONDS = 10.0
_STOP_SECONDS = 10.0
_STDERR_BYTES = 4096

_Key = tuple[str, Target]


class ExportProcesses:
    """The export processes of all jobs. `reconcile` starts those that are missing; `close` ends all."""

    def __init__(
        self, settings: Settings, redis_url: str, jobs: JobStore, backoff_seconds: float = BACKOFF_SECONDS
    ) -> None:
        self._settings, self._redis_url, self._jobs = settings, redis_url, jobs
        self._backoff = backoff_seconds
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._failures: Counter[_Key] = Counter()
        self._not_before: dict[_Key, float] = {}

    async def reconcile(self) -> None:
        """Start the missing exports: of every unfinished job, and of ended jobs whose export is incomplete."""
        for key, task in list(self._running.items()):
            if task.done():
                del self._running[key]
                task.result()
        for job in await self._jobs.all():
            for target, options in self._targets(job):
                key = (job.id, target)
                due = time.monotonic() >= self._not_before.get(key, 0.0)
                if key not in self._running and due and self._wanted(job, target):
                    self._running[key] = asyncio.create_task(self._export(key, options), name=f"export {target}")

    async def close(self) -> None:
        """End every process; the next gateway continues from their cursors."""
        for task in self._running.values():
            task.cancel()
        for done in await asyncio.gather(*self._running.values(), return_exceptions=True):
            if isinstance(done, Exception):
                get_logger(__name__).error("an export ended with an error", exc_info=done)
        self._running.clear()

    def folder(self, job_id: str, target: Target) -> Path:
        """The folder that the export writes to."""
        return JobFolder.of(self._settings.data_dir, job_id).export(target)

    def _targets(self, job: Job) -> Iterator[tuple[Target, dict[str, Any]]]:
        for target in self._settings.exports:
            yield target, {}
        for integration in job.integrations:
            yield integration["type"], integration[integration["type"]]

    def _wanted(self, job: Job, target: Target) -> bool:
        if self._failures[job.id, target] >= ATTEMPTS:
            return False
        if job.status in ENDED:
            cursor = read_cursor(self.folder(job.id, target))
            return cursor.number > 0 and not cursor.complete
        return job.status == "running"

    async def _export(self, key: _Key, options: dict[str, Any]) -> None:
        job_id, target = key
        request = ExportRequest(self._redis_url, job_id, target, str(self.folder(job_id, target)), options)
        status, stderr_tail = await _process(request)
        if status == 0:
            self._failures.pop(key, None)
            return
        self._failures[key] += 1
        self._not_before[key] = time.monotonic() + self._backoff
        last = self._failures[key] >= ATTEMPTS
        then = f"given up; `headrace jobs export {job_id} {target}` does it later" if last else "it is tried again"
        await self._jobs.emit_event(job_id, f"the export to {target} failed, {then}: {stderr_tail}", level="warn")


async def _process(request: ExportRequest) -> tuple[int, str]:
    """Run an export process; returns (exit status, last line of stderr). If cancelled, lets the process end in good
    order."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace_gateway.exporters"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C in the terminal reaches the gateway only, which closes stdin
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        # stdin stays open: the process ends when it is closed
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        stderr_tail = b""
        while read := await process.stderr.read(_STDERR_BYTES):
            stderr_tail = (stderr_tail + read)[-_STDERR_BYTES:]
        status = await process.wait()
    except asyncio.CancelledError:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        raise
    lines = stderr_tail.decode(errors="replace").strip().splitlines()
    return status, lines[-1] if lines else "it ended without a word"
