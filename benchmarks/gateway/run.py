"""Throughput and CPU time of the gateway: reads of a running job's status, 200 event streams, and pages of 100 jobs.

The app as `headrace serve` serves it, in its own process on its own core, over a real Redis. The load generator, Redis
and the writer that simulates the running job share another core. The job is simulated at the rate of a fast one: per
second 2 steps with their events, an update and a heartbeat of each of its workers, all written through `JobStore`. It
already has 2,000 steps with all heartbeats, as have 99 other jobs. API keys are off, as on loopback.

    reads     16 connections, each sending a request as soon as it has an answer; every answer must have status 200
    streams   200 listeners of `…/stream?thin=400`; every entry must reach each of them once and in order
    overview  the page of 100 jobs, one request after the other

CPU time is that of all threads of the gateway's process, which other load of the machine hardly affects. The client is
a raw protocol on uvloop (`load.py`); its own CPU time per request is reported, to show that it is not the bottleneck.
The three alternate; the figures are medians over rounds, p99 over the requests of a round.

    python -m benchmarks.gateway.run [--seed N] [--out FILE] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import uvloop
from redis.asyncio import Redis

from benchmarks.gateway.load import listeners, missed, read_for, wait_for_all
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.client import connect
from headrace_core.redis_access.client import run as answer
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.metrics import StepMetrics, WorkerMetrics
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.gateway_process import gateway
from headrace_lab.services.jobs import Seeded, StepNumber

READS_PER_SECOND = 1000
"""PASS: at least this many reads of a running job's status per second on one core."""
P99_SECONDS = 0.050
"""PASS: 99 % of the reads take at most this."""
STREAMS = 200
STREAMS_CORES = 0.5
"""PASS: `STREAMS` open streams of a running job take less than this fraction of a core, and miss no entry."""
OVERVIEW_SECONDS = 0.050
"""PASS: the page of 100 jobs takes at most this (median)."""
CONNECTIONS = 16
JOBS, STEPS = 100, 2000
STEPS_PER_SECOND = 2
START_SECONDS = 60.0
JOB = Seeded(0, STEPS, 10 * STEPS)


@dataclass(frozen=True)
class Round:
    """Figures of one round; CPU times are of the gateway's process unless stated otherwise."""

    reads_per_second: float
    p50_seconds: float
    p99_seconds: float
    read_cpu_seconds: float
    """Per read."""
    client_cpu_seconds: float
    """Per read, of the client's process."""
    wrong: int
    stream_cores: float
    stream_entries: int
    """Entries that each listener should have received in the round."""
    missed: int
    """Entries that were not received exactly once and in order, summed over all listeners."""
    stream_bytes_per_second: float
    """Summed over all listeners."""
    overview_seconds: float
    overview_cpu_seconds: float
    load: float
    """Load average of the machine when the round began."""


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


async def store_jobs(redis: Redis) -> None:
    """Store the running job and 99 other jobs with copies of its history."""
    await JOB.store(redis)
    source = JobKeys(JOB.id)
    for number in range(1, JOBS):
        job, keys = Seeded(number, STEPS, STEPS, status="succeeded"), JobKeys(f"ftjob-{number:024d}")
        await JobStore(redis).create(job.job())
        async with redis.pipeline(transaction=False) as pipe:
            for kind in ("event", "step", "evaluation", "update", "worker"):
                pipe.copy(source.history(kind), keys.history(kind))
            for of in ("summary", "marks", "ledger"):
                pipe.copy(getattr(source, of), getattr(keys, of))
            await pipe.execute()


class SimulatedJob:
    """Writes what the learner and the workers of a running job would write, as far as the gateway reads it."""

    def __init__(self, redis: Redis, seed: int) -> None:
        self._redis, self._jobs = redis, JobStore(redis)
        self._step = STEPS
        self._seed = seed

    async def run(self) -> None:
        """Write steps at their rate, until cancelled."""
        began, steps = time.monotonic(), 0
        while True:
            steps += 1
            self._step += 1
            played = Seeded(self._seed, self._step, JOB.total, beats=self._step % STEPS_PER_SECOND, began=time.time())
            for measured in played.measurements(self._step - 1):
                if isinstance(measured, WorkerMetrics):
                    await self._jobs.record_heartbeat(JOB.id, measured)
                else:
                    await self._jobs.record(JOB.id, measured)
                if isinstance(measured, StepMetrics):
                    message, data = f"Step {measured.step}/{measured.total_steps}", StepNumber(measured.step)
                    await self._jobs.emit_event(JOB.id, message, type="metrics", data=data)
            await answer(self._redis.hincrby(JobKeys(JOB.id).ledger, "version", 1))
            await asyncio.sleep(max(0.0, began + steps / STEPS_PER_SECOND - time.monotonic()))


@asynccontextmanager
async def simulated_job(redis: Redis, seed: int) -> AsyncIterator[None]:
    """The job runs within the context; raises if its simulation fails."""
    running = asyncio.create_task(SimulatedJob(redis, seed).run(), name="simulated job")
    try:
        yield
    finally:
        running.cancel()
        (ended,) = await asyncio.gather(running, return_exceptions=True)
        if not isinstance(ended, asyncio.CancelledError):
            raise RuntimeError("the simulated job ended early") from ended


def cpu(process: psutil.Process) -> float:
    """User and system CPU seconds of the process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def one_round(redis: Redis, host: str, process: psutil.Process, seconds: float) -> Round:
    """Measure reads, streams and overview, one after the other."""
    jobs, path, load = JobStore(redis), f"/v1/fine_tuning/jobs/{JOB.id}", os.getloadavg()[0]
    me = psutil.Process()

    before, mine, began = cpu(process), cpu(me), time.monotonic()
    took, wrong = await read_for(seconds, host, path, CONNECTIONS)
    elapsed, read_cpu, client_cpu = time.monotonic() - began, cpu(process) - before, cpu(me) - mine
    took.sort()

    streams = await listeners(STREAMS, host, f"{path}/stream?thin=400")
    await wait_for_all(streams, await jobs.history.last(JOB.id) + 1, START_SECONDS)  # the streams have caught up
    first, sent = await jobs.history.last(JOB.id) + 1, sum(s.bytes for s in streams)
    before, began = cpu(process), time.monotonic()
    await asyncio.sleep(seconds)
    span, stream_cpu, sent = time.monotonic() - began, cpu(process) - before, sum(s.bytes for s in streams) - sent
    last = await jobs.history.last(JOB.id)
    await wait_for_all(streams, last, START_SECONDS)
    failed = sum(len(list(missed(s, first, last))) + s.lost for s in streams)
    for stream in streams:
        stream.transport.close()

    before = cpu(process)
    overview, wrong_too = await read_for(seconds / 4, host, f"/v1/headrace/overview?limit={JOBS}", 1)
    return Round(
        reads_per_second=len(took) / elapsed,
        p50_seconds=statistics.median(took),
        p99_seconds=took[int(0.99 * len(took))],
        read_cpu_seconds=read_cpu / len(took),
        client_cpu_seconds=client_cpu / len(took),
        wrong=wrong + wrong_too,
        stream_cores=stream_cpu / span,
        stream_entries=last - first + 1,
        missed=failed,
        stream_bytes_per_second=sent / span,
        overview_seconds=statistics.median(overview),
        overview_cpu_seconds=(cpu(process) - before) / len(overview),
        load=load,
    )


async def measure(redis_url: str, root: Path, rounds: int, seconds: float, seed: int, core: int) -> list[Round]:
    redis = connect(redis_url)
    found = []
    try:
        await store_jobs(redis)
        with gateway(redis_url, root / "data", {core}) as (address, process):
            host = address.removeprefix("http://")
            async with simulated_job(redis, seed):
                await read_for(1.0, host, f"/v1/fine_tuning/jobs/{JOB.id}", CONNECTIONS)  # warm
                for _ in range(rounds):
                    found.append(await one_round(redis, host, process, seconds))
                    print(f"  {asdict(found[-1])}", flush=True)
    finally:
        await redis.aclose()
    return found


def main() -> None:
    parser = arguments("gateway", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part of a round")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("the gateway needs a core of its own, and the load another")
    os.sched_setaffinity(0, cores[1:])  # the Redis that is started inherits it
    with tempfile.TemporaryDirectory(prefix="headrace-gateway-") as folder:
        root = Path(folder)
        server = RedisServer(root / "redis")
        server.start()
        try:
            found = uvloop.run(measure(server.url, root, options.rounds, options.seconds, options.seed, cores[0]))
        finally:
            server.stop()
    median = Round(*(statistics.median(values) for values in zip(*(asdict(r).values() for r in found), strict=True)))
    wrong, unseen = sum(r.wrong for r in found), sum(r.missed for r in found)
    passed = (
        median.reads_per_second >= READS_PER_SECOND
        and median.p99_seconds <= P99_SECONDS
        and median.stream_cores < STREAMS_CORES
        and median.overview_seconds <= OVERVIEW_SECONDS
        and wrong == unseen == 0
    )
    figures = (
        f"{median.reads_per_second:.0f} reads/s (wanted {READS_PER_SECOND}) at p99 {median.p99_seconds * 1000:.1f} ms "
        f"(limit {P99_SECONDS * 1000:.0f}), {median.read_cpu_seconds * 1e6:.0f} µs CPU each; {STREAMS} streams cost "
        f"{median.stream_cores:.2f} cores (limit {STREAMS_CORES}), {unseen} entries missed; overview of {JOBS} jobs in "
        f"{median.overview_seconds * 1000:.1f} ms (limit {OVERVIEW_SECONDS * 1000:.0f})"
    )
    limits = {
        "reads": READS_PER_SECOND,
        "p99": P99_SECONDS,
        "stream_cores": STREAMS_CORES,
        "overview": OVERVIEW_SECONDS,
    }
    result = {"limits": limits, "median": asdict(median), "rounds": [asdict(r) for r in found]}
    report("gateway", passed, figures, result | {"connections": CONNECTIONS, "streams": STREAMS}, options)


if __name__ == "__main__":
    main()
