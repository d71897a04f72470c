"""Peak memory of the gateway: its largest resident size during a soak test.

The app as `headrace serve` serves it, in one process, over a real Redis, without Ray: the benchmark stores what a job's
controller and workers would store, as in the benchmark `gateway`.

    uploads    one file of 500 MB, in rows of 2 kB, uploaded and read back
    jobs       100 submitted, the first with the large file (its rows are checked), the others with small ones; for each
               hundreds of measurements of each kind are stored
    requests   10,000 by 16 concurrent connections: every view of every job, full pages of measurements, lists,
               overviews, streams from the beginning; request bodies that are refused

The size is the kernel's VmHWM of the process: its largest resident size so far.

    python -m benchmarks.gateway_memory [--seed N] [--out FILE] [--requests N] [--jobs N] [--upload-mb N]
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import uvloop
from redis.asyncio import Redis

from headrace_core.redis_access.client import connect
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.gateway_process import gateway
from headrace_lab.services.jobs import Seeded

MAX_BYTES = 300_000_000
"""PASS: the peak resident size is at most this."""
REQUESTS, JOBS, UPLOAD_MB = 10_000, 100, 500
CONNECTIONS = 16
STEPS = 200
START_SECONDS = 60.0
GRADER = {
    "type": "string_check",
    "name": "answer",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
VIEWS = (
    "", "/events?limit=100", "/metrics?limit=10000", "/metrics?kind=worker", "/ledger", "/staleness?limit=10000",
    "/reward", "/checkpoints", "/settings", "/workers", "/queues", "/weights", "/rollouts",
)  # fmt: skip
LISTS = ("/v1/fine_tuning/jobs?limit=100", "/v1/files", "/v1/models", "/v1/headrace/overview?limit=100", "/metrics")


def resident(pid: int) -> tuple[int, int]:
    """Resident size of the process: (bytes now, peak bytes)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def rows(path: Path, size: int, seed: int) -> Path:
    """Write a training file of about `size` bytes to `path`, and return the path."""
    numbers = random.Random(seed)
    with path.open("w") as file:
        while file.tell() < size:
            a, b = numbers.randrange(100), numbers.randrange(100)
            row = {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)}
            file.write(json.dumps(row | ({"reasoning": "x" * 1900} if size > 100_000 else {})) + "\n")
    return path


async def upload(http: httpx.AsyncClient, path: Path) -> str:
    with path.open("rb") as content:
        answer = await http.post("/v1/files", files={"file": (path.name, content)}, data={"purpose": "fine-tune"})
    answer.raise_for_status()
    return str(answer.json()["id"])


async def submit(http: httpx.AsyncClient, file_id: str) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": {"n_steps": STEPS}}}
    body = {"model": "headrace/tiny-adder", "training_file": file_id, "method": method}
    (await http.post("/v1/fine_tuning/jobs", json=body)).raise_for_status()


async def read_back(http: httpx.AsyncClient, file_id: str) -> None:
    async with http.stream("GET", f"/v1/files/{file_id}/content") as answer:
        async for _ in answer.aiter_raw():
            pass


async def request(http: httpx.AsyncClient, seeded: list[Seeded], numbers: random.Random) -> None:
    """Send one random request of the mix. Raises if the answer's status is not the expected one."""
    job, kind = f"/v1/fine_tuning/jobs/{numbers.choice(seeded).id}", numbers.random()
    if kind < 0.8:
        (await http.get(job + numbers.choice(VIEWS))).raise_for_status()
    elif kind < 0.9:
        (await http.get(numbers.choice(LISTS))).raise_for_status()
    elif kind < 0.95:
        async with http.stream("GET", f"{job}/stream?thin=10000") as stream:
            stream.raise_for_status()
            async for _ in stream.aiter_raw():
                pass
    else:
        content = b'{"x": "' + b"x" * 1_000_000 + b'"}'
        refused = await http.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 400, refused.text


async def request_all(http: httpx.AsyncClient, requests: int, seeded: list[Seeded], seed: int) -> None:
    left = iter(range(requests))

    async def connection(number: int) -> None:
        numbers = random.Random(f"{seed}/{number}")
        for _ in left:
            await request(http, seeded, numbers)

    await asyncio.gather(*(connection(number) for number in range(CONNECTIONS)))


async def soak(redis: Redis, address: str, pid: int, root: Path, options: Any) -> dict[str, Any]:
    """Run all parts; returns the resident sizes after each."""
    sizes: dict[str, Any] = {}

    def note(part: str) -> None:
        now, peak = resident(pid)
        sizes[part] = {"resident": now, "most": peak, "seconds": round(time.monotonic() - began, 1)}
        print(f"  {part:<9} {now / 1e6:.0f} MB now, {peak / 1e6:.0f} MB at most", flush=True)

    began = time.monotonic()
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        (await http.get("/readyz")).raise_for_status()
        note("fresh")
        large = await upload(http, rows(root / "large.jsonl", options.upload_mb * 1_000_000, options.seed))
        await read_back(http, large)
        note("uploads")
        small = await upload(http, rows(root / "small.jsonl", 10_000, options.seed))
        for number in range(options.jobs):
            await submit(http, small if number else large)
        seeded = [Seeded(number, STEPS, STEPS, status="succeeded", tells=True) for number in range(options.jobs)]
        for job in seeded:
            await job.store(redis)
        note("jobs")
        await request_all(http, options.requests, seeded, options.seed)
        note("requests")
    return sizes


async def measure(options: Any, root: Path) -> dict[str, Any]:
    server = RedisServer(root / "redis")
    server.start()
    redis = connect(server.url)
    try:
        with gateway(server.url, root / "data", {max(os.sched_getaffinity(0))}) as (address, process):
            return await soak(redis, address, process.pid, root, options)
    finally:
        await redis.aclose()
        server.stop()


def main() -> None:
    parser = arguments("gateway_memory", __doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--upload-mb", type=int, default=UPLOAD_MB)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-memory-") as folder:
        sizes = uvloop.run(measure(options, Path(folder)))
    fresh, peak = sizes["fresh"]["resident"], sizes["requests"]["most"]
    figures = (
        f"{peak / 1e6:.0f} MB at most (at most {MAX_BYTES / 1e6:.0f}), {fresh / 1e6:.0f} fresh: {options.requests} "
        f"requests, {options.jobs} jobs, an upload of {options.upload_mb} MB"
    )
    result = {"sizes": sizes, "requests": options.requests, "jobs": options.jobs, "upload_mb": options.upload_mb}
    report("gateway_memory", peak <= MAX_BYTES, figures, result, options)


if __name__ == "__main__":
    main()
