"""Time to transport a group from a rollout worker to the learner, compared with raw Redis round trips of its bytes.

    ours   for each group: encode · admit · commit (queue) · claim · decode · settle, as the workers call them: the
           rollout worker admits and commits group by group, the learner claims and settles a batch of 32
    raw    for each group: SET of the encoded bytes, GET, DEL: three awaited commands without encoding or bookkeeping,
           the minimum of any transport through Redis

Both run one call at a time with the same client, the same private Redis (append-only, as in `headrace serve`) and the
same groups, in alternating rounds; the figure is the median over the rounds of the ratio of their times. Forgetting
trained groups (`Ledger.forget_before`, once per checkpoint) counts as part of ours, as DEL does of raw.

    python -m benchmarks.transport [--seed N] [--out FILE] [--rounds N]
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis

from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Step, TransitionOutcome
from headrace_core.redis_access.client import connect, run
from headrace_core.types.staleness import Limits, ages
from headrace_core.types.trajectory import Group, encode, sampled_completion
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.reports.benchmark_report import arguments, report

RATIO_LIMIT = 3.0
"""PASS: for each shape, transporting a group takes at most this many times as long as its raw round trips."""

BATCH = 32
"""Groups per step."""
WARM_UP = 3
"""Rounds that are not counted: scripts are loaded and buffers grow."""


@dataclass(frozen=True)
class Shape:
    """Size of the groups: number of completions, and tokens of each."""

    completions: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.completions}x{self.tokens}"


SHAPES = (Shape(8, 64), Shape(8, 512))


def a_group(shape: Shape, version: int, rng: np.random.Generator) -> Group:
    """A group of random tokens, sampled at policy `version`."""
    completions = tuple(
        sampled_completion(
            rng.integers(0, 50_000, shape.tokens, np.int32),
            -rng.random(shape.tokens, np.float32),
            np.full(shape.tokens, version, np.int32),
            "stop",
            reward=float(rng.random()),
            components={"correct": 1.0},
        )
        for _ in range(shape.completions)
    )
    return Group(0, 1, 0, version, rng.integers(0, 50_000, 48, np.int32), completions)


class LedgerTransport:
    """Transport through the ledger, one step of BATCH groups at a time; measures the seconds of each stage."""

    def __init__(self, ledger: Ledger, limits: Limits) -> None:
        self._ledger, self._limits = ledger, limits
        self.seconds: dict[str, float] = {}

    async def open(self) -> None:
        await self._ledger.open(self._limits)
        self._term = await self._ledger.enlist()

    async def step(self, version: int, groups: list[Group]) -> float:
        """Transport `groups`; returns the seconds it took."""
        began = time.perf_counter()
        for group in groups:
            lease = (await self._ledger.admit("rollout-0", version, 1, 60.0)).leases[0]
            leased = Group(lease.group_id, lease.attempt, group.row, lease.version, group.prompt_ids, group.completions)
            assert await self._ledger.commit(lease, leased) is TransitionOutcome.QUEUED
        committed = time.perf_counter()
        claim = await self._ledger.claim(self._term, self._limits, "mask")
        claimed = time.perf_counter()
        counts: dict[int, int] = {}
        for age in ages(np.concatenate([c.versions for g in claim.groups for c in g.completions]), version):
            counts[int(age)] = counts.get(int(age), 0) + 1
        step = Step(version, tuple(g.group_id for g in claim.groups), counts, 0)
        counted = time.perf_counter()
        assert await self._ledger.settle(self._term, step, f"v{version + 1:08d}-t1") is TransitionOutcome.SETTLED
        await self._ledger.forget_before(version + 1)
        settled = time.perf_counter()
        self._note(admit_commit=committed - began, claim_decode=claimed - committed, settle_cover=settled - counted)
        return settled - counted + claimed - began  # counting ages is the learner's work, not transport

    def _note(self, **seconds: float) -> None:
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


async def raw(redis: Redis, messages: list[bytes]) -> float:
    """Write, read and delete each message; returns the seconds it took."""
    began = time.perf_counter()
    for number, message in enumerate(messages):
        key = f"raw-{number}"
        await run(redis.set(key, message))
        read = await run(redis.get(key))
        await run(redis.delete(key))
        assert len(read) == len(message)
    return time.perf_counter() - began


@asynccontextmanager
async def private_redis() -> AsyncIterator[Redis]:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        client = connect(server.url)
        try:
            yield client
        finally:
            await client.aclose()
            server.stop()


async def measure(redis: Redis, shape: Shape, rounds: int, seed: int) -> dict[str, Any]:
    """Medians over `rounds`, in microseconds per group."""
    rng = np.random.default_rng(seed)
    transport = LedgerTransport(
        Ledger(redis, f"ftjob-{shape.name}"), Limits(BATCH, max_staleness=1, total_groups=(rounds + WARM_UP) * BATCH)
    )
    await transport.open()
    ours, raw_seconds = [], []
    for number in range(WARM_UP + rounds):
        groups = [a_group(shape, number, rng) for _ in range(BATCH)]
        messages = [encode(g) for g in groups]
        if number == WARM_UP:
            transport.seconds = {}
        first = await transport.step(number, groups) if number % 2 else 0.0
        raw_seconds.append(await raw(redis, messages))
        ours.append(first or await transport.step(number, groups))
    ours, raw_seconds = ours[WARM_UP:], raw_seconds[WARM_UP:]
    us_per_group = 1e6 / BATCH
    return {
        "shape": shape.name,
        "bytes": len(messages[0]),
        "ratio": statistics.median(a / b for a, b in zip(ours, raw_seconds, strict=True)),
        "ours_us": statistics.median(ours) * us_per_group,
        "raw_us": statistics.median(raw_seconds) * us_per_group,
        "stages_us": {stage: spent / rounds * us_per_group for stage, spent in transport.seconds.items()},
        "ratios": [round(a / b, 3) for a, b in zip(ours, raw_seconds, strict=True)],
    }


async def measure_all(rounds: int, seed: int) -> list[dict[str, Any]]:
    async with private_redis() as redis:
        return [await measure(redis, shape, rounds, seed) for shape in SHAPES]


def main() -> None:
    parser = arguments("transport", __doc__)
    parser.add_argument("--rounds", type=int, default=30, help="steps of 32 groups for each shape")
    options = parser.parse_args()
    cases = asyncio.run(measure_all(options.rounds, options.seed))
    for case in cases:
        stages = ", ".join(f"{stage} {spent:.0f}" for stage, spent in case["stages_us"].items())
        print(f"{case['shape']}: {case['bytes']} bytes; µs a group: {stages}")
    passed = all(case["ratio"] <= RATIO_LIMIT for case in cases)
    figures = ", ".join(
        f"{c['shape']} {c['ratio']:.2f}x raw ({c['ours_us']:.0f} against {c['raw_us']:.0f} us a group)" for c in cases
    )
    report("transport", passed, f"{figures}, limit {RATIO_LIMIT:.0f}x", {"limit": RATIO_LIMIT, "cases": cases}, options)


if __name__ == "__main__":
    main()
