"""The simulated engine's clock against arithmetic by hand, and the lengths' distribution."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from headrace_lab.virtual.simulated_engine import DecodeSpeed, Lengths, SimulatedEngine
from headrace_lab.virtual.virtual_time import run
from headrace_rollout.engines.engine import Sampled, SamplingConfig

SPEED = DecodeSpeed(base=1.0, each=0.5, update_pause=2.0)
SAMPLING = SamplingConfig(max_tokens=100)


def now() -> float:
    return asyncio.get_running_loop().time()


async def generate(engine: SimulatedEngine, row: int) -> tuple[float, Sampled]:
    sampled = await engine.generate(np.array([row], np.int32), SAMPLING)
    return now(), sampled


def test_each_step_costs_its_base_and_a_share_for_each_request() -> None:
    async def main() -> None:
        engine = SimulatedEngine(SPEED, np.array([[4], [10]]))
        short, long = await asyncio.gather(generate(engine, 0), generate(engine, 1))
        assert short[0] == pytest.approx(4 * 2.0)  # two requests: 1 + 2 × 0.5 seconds a step
        assert long[0] == pytest.approx(4 * 2.0 + 6 * 1.5)
        assert (len(short[1].token_ids), len(long[1].token_ids)) == (4, 10)
        assert engine.busy_seconds == pytest.approx(17.0)
        assert engine.request_seconds == pytest.approx(2 * 8.0 + 9.0)
        await asyncio.sleep(100.0)
        assert engine.busy_seconds == pytest.approx(17.0)

    run(main())


def test_tokens_after_an_update_carry_its_version_and_the_pause_costs_its_time() -> None:
    async def main() -> None:
        engine = SimulatedEngine(SPEED, np.array([[10]]))
        request = asyncio.create_task(generate(engine, 0))
        await asyncio.sleep(4.6)  # three steps of 1.5 s and a bit
        report = await engine.update(7, Path("weights"))
        assert (engine.version, report.requests_in_flight, now()) == (7, 1, pytest.approx(6.6))
        ended, sampled = await request
        assert ended == pytest.approx(10 * 1.5 + 2.0)
        assert sampled.versions.tolist() == [0] * 3 + [7] * 7

    run(main())


def test_a_cancelled_request_frees_its_slot_and_speeds_up_the_others() -> None:
    async def main() -> None:
        engine = SimulatedEngine(SPEED, np.array([[10], [20]]))
        kept = asyncio.create_task(generate(engine, 0))
        dropped = asyncio.create_task(generate(engine, 1))
        await asyncio.sleep(4.0)  # two steps
        assert engine.running == 2
        dropped.cancel()
        ended, _ = await kept
        assert ended == pytest.approx(2 * 2.0 + 8 * 1.5)
        assert engine.running == 0

    run(main())


def test_lengths_have_the_mean_and_the_share_at_the_cap_that_were_asked_for() -> None:
    lengths = Lengths(mean=900.0, cap=3000, capped_share=0.04, seed=3)
    table = lengths.table(4096, 16)
    assert table.mean() == pytest.approx(900.0, rel=0.02)
    assert (table == 3000).mean() == pytest.approx(0.04, abs=0.004)
    assert table.min() >= 1
    assert np.array_equal(table, lengths.table(4096, 16))
