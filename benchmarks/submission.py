"""How long a job's submission takes, with checks forked from a process that has imported them and without.

Two gateways as `headrace serve` serves them, side by side on one core over one real Redis, without Ray: one with a fork
server, one whose checks each start an interpreter (`HEADRACE_FORK_SERVER=false`). A round submits one job of each kind
to each of them, one after the other, in turns of who is first, so that both see the same machine; 64 rows, the model
headrace/tiny-adder. Each first job of a gateway is not counted.

    string_check   its prompts are counted, the grader is tried on the first row
    function       the same, and the function's process is started in the sandbox

Wall time is the client's, from request to answer. Processor time is of all processes below a gateway, those that have
ended included: what a submission takes of the machine. The bounds are for a machine that is idle otherwise: `load`
stands in the result, and the ratio is of one run.

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
"""PASS: at most this for a submission (median), of either kind, with the fork server,"""
RATIO = 3.0
"""and at least so many times that without it."""
MEMORY_BYTES = 120_000_000
"""PASS: the idle fork server takes no more than this (proportional set size)."""
START_SECONDS = 60.0
ROW = {"messages": [{"role": "user", "content": "37 + 56"}], "answer": "93"}
SIDES = {"with": "true", "without": "false"}


def graders(folder: Path) -> dict[str, dict[str, Any]]:
    """By kind."""
    code = folder / "reward.py"
    code.write_text("def reward(completion, answer):\n    return float(answer in completion)\n")
    compared = {"operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    return {
        "string_check": {"type": "string_check", "name": "answer"} | compared,
        "function": {"type": "function", "name": "answer", "function": f"{code}:reward"},
    }


class Side:
    """A gateway, and a client of it."""

    def __init__(self, process: psutil.Process, http: httpx.AsyncClient, file_id: str) -> None:
        self.process = process
        self._http, self._file = http, file_id

    async def submit(self, grader: dict[str, Any]) -> tuple[float, float]:
        """(seconds of wall time, seconds of processor time)."""
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
            sum(process.cpu_times()[:4])  # of it and of those below it that have ended
            for process in (self.process, *self.process.children(recursive=True))
        )

    def fork_server(self) -> psutil.Process | None:
        """None where there is none."""
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
    """Rounds of (seconds, processor seconds) by kind and side, and what the fork server takes of memory."""
    order, kinds = random.Random(seed), graders(root)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {kind: {name: [] for name in SIDES} for kind in kinds}
    async with (
        side(redis_url, root / "with", core, SIDES["with"]) as forked,
        side(redis_url, root / "without", core, SIDES["without"]) as started,
    ):
        sides = {"with": forked, "without": started}
        for each in sides.values():
            await each.submit(kinds["function"])
        server = forked.fork_server()
        assert server is not None
        assert started.fork_server() is None
        for _ in range(rounds):
            for kind, grader in kinds.items():
                for name in order.sample(list(SIDES), 2):
                    found[kind][name].append(await sides[name].submit(grader))
            print("  ", {kind: {name: of[-1] for name, of in by.items()} for kind, by in found.items()}, flush=True)
        memory = server.memory_full_info()
    return {"rounds": found, "fork_server": {"rss": memory.rss, "pss": memory.pss, "uss": memory.uss}}


def summed_up(rounds: dict[str, dict[str, list[tuple[float, float]]]]) -> dict[str, dict[str, Any]]:
    """Medians by kind."""
    found: dict[str, dict[str, Any]] = {}
    for kind, by in rounds.items():
        medians = {name: [statistics.median(values) for values in zip(*of, strict=True)] for name, of in by.items()}
        found[kind] = {
            "seconds": {name: median[0] for name, median in medians.items()},
            "cpu_seconds": {name: median[1] for name, median in medians.items()},
            "ratio": statistics.median(b[0] / a[0] for a, b in zip(by["with"], by["without"], strict=True)),
        }
    return found


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
    found, memory = summed_up(measured["rounds"]), measured["fork_server"]
    passed = memory["pss"] <= MEMORY_BYTES and all(
        of["seconds"]["with"] <= WITH_SECONDS and of["ratio"] >= RATIO for of in found.values()
    )
    figures = "; ".join(
        f"{kind}: {of['seconds']['with'] * 1000:.0f} ms (limit {WITH_SECONDS * 1000:.0f}), without "
        f"{of['seconds']['without'] * 1000:.0f}, ratio {of['ratio']:.1f} (wanted {RATIO:.0f}), "
        f"{of['cpu_seconds']['with']:.2f} s of a core, without {of['cpu_seconds']['without']:.2f}"
        for kind, of in found.items()
    )
    figures += f"; the fork server takes {memory['pss'] / 1e6:.0f} MB (limit {MEMORY_BYTES / 1e6:.0f})"
    limits = {"seconds": WITH_SECONDS, "ratio": RATIO, "memory": MEMORY_BYTES}
    report("submission", passed, figures, {"limits": limits, "median": found} | measured, options)


if __name__ == "__main__":
    main()
