"""Duration of a job submission, with checks forked from a process that has imported their modules, and without.

Two gateways as `headrace serve` serves them run on one core over one real Redis, without Ray: one with a fork server,
one whose checks each start an interpreter (`HEADRACE_FORK_SERVER=false`). A round submits one job of each kind to each
gateway, one after the other in random order, so that both run under the same conditions; 64 rows, the model
headrace/tiny-adder. The first job of each gateway is not counted.

    string_check   its prompts are counted, and the grader is tried on the first row
    function       the same, and the function's process is started in the sandbox

Wall time is measured by the client, from request to answer. CPU time is that of the gateway and all its descendant
processes, including those that have ended. The limits are for an otherwise idle machine: the result contains the load,
and the ratio compares times of the same run.

    python -m benchmarks.submission [--seed N] [--out FILE] [--rounds N]
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop

from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.gateway_process import gateway

WITH_SECONDS = 0.400
"""PASS: with the fork server, a submission of either kind takes at most this (median)."""
RATIO = 3.0
"""PASS: without the fork server, a submission takes at least this many times as long."""
MEMORY_BYTES = 120_000_000
"""PASS: the proportional set size of the idle fork server is at most this."""
START_SECONDS = 60.0
ROW = {"messages": [{"role": "user", "content": "37 + 56"}], "answer": "93"}
SIDES = {"with": "true", "without": "false"}


def graders(folder: Path) -> dict[str, dict[str, Any]]:
    """A grader of each kind."""
    code = folder / "reward.py"
    code.write_text("def reward(completion, answer):\n    return float(answer in completion)\n")
    compared = {"operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    return {
        "string_check": {"type": "string_check", "name": "answer"} | compared,
        "function": {"type": "function", "name": "answer", "function": f"{code}:reward"},
    }


class Side:
    """A gateway and its client."""

    def __init__(self, process: psutil.Process, http: httpx.AsyncClient, file_id: str) -> None:
        self.process = process
        self._http, self._file = http, file_id

    async def submit(self, grader: dict[str, Any]) -> tuple[float, float]:
        """Submit a job; returns (seconds of wall time, seconds of CPU time)."""
        method = {"reinforcement": {"grader": grader, "hyperparameters": {"n_steps": 3, "batch_size": 4}}}
        body = {"model": "headrace/tiny-adder", "training_file": self._file}
        before, began = self._cpu(), time.monotonic()
        answer = await self._http.post(
            "/v1/fine_tuning/jobs", json=body | {"method": {"type": "reinforcement"} | method}
        )
        took = time.monotonic() - began
        answer.raise_for_status()
        return took, self._cpu() - before

    def _cpu(self) -> float:
        return sum(
            sum(process.cpu_times()[:4])  # user and system time of the process and of its ended children
            for process in (self.process, *self.process.children(recursive=True))
        )

    def fork_server(self) -> psutil.Process | None:
        """The gateway's fork server; None if it has none."""
        return next(
            (c for c in self.process.children() if "headrace_gateway.limited_processes.fork_server" in c.cmdline()),
            None,
        )


@asynccontextmanager
async def side(redis_url: str, folder: Path, core: int, fork_server: str) -> AsyncIterator[Side]:
    with gateway(redis_url, folder, {core}, {"HEADRACE_FORK_SERVER": fork_server}) as (address, process):
        async with httpx.AsyncClient(base_url=address, timeout=120.0) as http:
            rows = (json.dumps(ROW) + "\n").encode() * 64
            uploaded = await http.post("/v1/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "fine-tune"})
            uploaded.raise_for_status()
            yield Side(process, http, uploaded.json()["id"])


async def measure(redis_url: str, root: Path, rounds: int, seed: int, core: int) -> dict[str, Any]:
    """Rounds of (wall seconds, CPU seconds) by kind and side, and the memory of the fork server."""
    order, kinds = random.Random(seed), graders(root)
    times: dict[str, dict[str, list[tuple[float, float]]]] = {kind: {name: [] for name in SIDES} for kind in kinds}
    async with (
        side(redis_url, root / "with", core, SIDES["with"]) as forked,
        side(redis_url, root / "without", core, SIDES["without"]) as started,
    ):
        sides = {"with": forked, "without": started}
        for gateway_side in sides.values():
            await gateway_side.submit(kinds["function"])
        server = forked.fork_server()
        assert server is not None
        assert started.fork_server() is None
        for _ in range(rounds):
            for kind, grader in kinds.items():
                for name in order.sample(list(SIDES), 2):
                    times[kind][name].append(await sides[name].submit(grader))
            last = {kind: {name: rows[-1] for name, rows in by_side.items()} for kind, by_side in times.items()}
            print("  ", last, flush=True)
        memory = server.memory_full_info()
    return {"rounds": times, "fork_server": {"rss": memory.rss, "pss": memory.pss, "uss": memory.uss}}


def summarise(rounds: dict[str, dict[str, list[tuple[float, float]]]]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds, by kind."""
    summary: dict[str, dict[str, Any]] = {}
    for kind, by_side in rounds.items():
        medians = {
            name: [statistics.median(values) for values in zip(*rows, strict=True)] for name, rows in by_side.items()
        }
        pairs = zip(by_side["with"], by_side["without"], strict=True)
        summary[kind] = {
            "seconds": {name: median[0] for name, median in medians.items()},
            "cpu_seconds": {name: median[1] for name, median in medians.items()},
            "ratio": statistics.median(without[0] / with_[0] for with_, without in pairs),
        }
    return summary


def main() -> None:
    parser = arguments("submission", __doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="headrace-submission-") as folder:
        root = Path(folder)
        redis = RedisServer(root / "redis")
        redis.start()
        try:
            measured = uvloop.run(measure(redis.url, root, options.rounds, options.seed, core))
        finally:
            redis.stop()
    medians, memory = summarise(measured["rounds"]), measured["fork_server"]
    passed = memory["pss"] <= MEMORY_BYTES and all(
        median["seconds"]["with"] <= WITH_SECONDS and median["ratio"] >= RATIO for median in medians.values()
    )
    figures = "; ".join(
        f"{kind}: {median['seconds']['with'] * 1000:.0f} ms (limit {WITH_SECONDS * 1000:.0f}), without "
        f"{median['seconds']['without'] * 1000:.0f}, ratio {median['ratio']:.1f} (wanted {RATIO:.0f}), "
        f"{median['cpu_seconds']['with']:.2f} s of a core, without {median['cpu_seconds']['without']:.2f}"
        for kind, median in medians.items()
    )
    figures += f"; the fork server takes {memory['pss'] / 1e6:.0f} MB (limit {MEMORY_BYTES / 1e6:.0f})"
    limits = {"seconds": WITH_SECONDS, "ratio": RATIO, "memory": MEMORY_BYTES}
    report("submission", passed, figures, {"limits": limits, "median": medians} | measured, options)


if __name__ == "__main__":
    main()
