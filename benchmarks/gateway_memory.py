"""How much memory the gateway takes, whatever it has served: its largest resident size over a soak, in one process.

The app as `headrace serve` serves it, over a real Redis, without Ray: its controllers are played, as in `gateway`.

    uploads    one file of 500 MB, in rows of 2 kB, uploaded and read back
    jobs       100 submitted, the first on the large file (its rows are checked), the others on small ones; each is
               played to its end, with hundreds of measurements of each kind
    requests   10,000 by 16 connections at once: every view of every job, whole pages of measurements, lists, overviews,
               streams with their past; files and bodies that are refused

What is measured is the kernel's own account of the process (VmHWM, its largest resident size until then).

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

MOST_BYTES = 300_000_000
"""PASS: the process never takes more."""
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
    """(bytes now, the most until now)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, most = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def rows(path: Path, size: int, seed: int) -> Path:
    """A data file of about `size` bytes."""
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


async def ask(http: httpx.AsyncClient, seeded: list[Seeded], numbers: random.Random) -> None:
    """One request of the mix. Raises where the answer is not what it must be."""
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


async def ask_all(http: httpx.AsyncClient, requests: int, seeded: list[Seeded], seed: int) -> None:
    left = iter(range(requests))

    async def connection(number: int) -> None:
        numbers = random.Random(f"{seed}/{number}")
        for _ in left:
            await ask(http, seeded, numbers)

    await asyncio.gather(*(connection(number) for number in range(CONNECTIONS)))


async def soak(redis: Redis, address: str, pid: int, root: Path, options: Any) -> dict[str, Any]:
    """Resident sizes after each part."""
    sizes: dict[str, Any] = {}

    def note(part: str) -> None:
        now, most = resident(pid)
        sizes[part] = {"resident": now, "most": most, "seconds": round(time.monotonic() - began, 1)}
        print(f"  {part:<9} {now / 1e6:.0f} MB now, {most / 1e6:.0f} MB at most", flush=True)

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
        await ask_all(http, options.requests, seeded, options.seed)
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
    fresh, most = sizes["fresh"]["resident"], sizes["requests"]["most"]
    figures = (
        f"{most / 1e6:.0f} MB at most (at most {MOST_BYTES / 1e6:.0f}), {fresh / 1e6:.0f} fresh: {options.requests} "
        f"requests, {options.jobs} jobs, an upload of {options.upload_mb} MB"
    )
    result = {"sizes": sizes, "requests": options.requests, "jobs": options.jobs, "upload_mb": options.upload_mb}
    report("gateway_memory", most <= MOST_BYTES, figures, result, options)


if __name__ == "__main__":
    main()
