"""Engines whose weights are split over two processes: each takes its part of every version, and none is left."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch

from headrace_core.errors import WeightsDamaged
from headrace_lab.waiting import wait_until_async
from headrace_rollout.engines.engine import EngineConfig, EngineFailure, SamplingConfig
from headrace_rollout.engines.vllm.engine import VllmEngine

from .engine_cases import Weights, cut_short, engine_config, import_vllm
from .tiny_model import EOS

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

Tokens = npt.NDArray[np.int32]
GREEDY = SamplingConfig(max_tokens=48, temperature=0.0)
LIMIT = 120.0


@pytest.fixture(scope="module", autouse=True)
def imported_vllm() -> Iterator[None]:
    import_vllm()
    yield
    gc.collect()


def config_of(weights: dict[str, Weights], processes: int) -> EngineConfig:
    return dataclasses.replace(engine_config(weights), tensor_parallel_size=processes, threads=processes)


def greedy(weights: Weights, prompt: Tokens) -> list[int]:
    """What transformers generates."""
    ids = torch.as_tensor(prompt, dtype=torch.long)[None]
    made = weights.model.generate(
        ids, max_new_tokens=GREEDY.max_tokens, do_sample=False, eos_token_id=EOS, pad_token_id=EOS
    )
    return [int(token) for token in made[0, len(prompt) :]]


def workers() -> list[psutil.Process]:
    """The processes that compute, of all engines under this process."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "Worker" in " ".join(process.cmdline())]


def shared_buffers() -> set[Path]:
    return set(Path("/dev/shm").glob("*-cpushm*"))


@pytest.mark.parametrize("processes", [1, 2])
async def test_greedy_tokens_are_those_of_transformers_before_and_after_updates(
    weights: dict[str, Weights], prompt: Tokens, processes: int
) -> None:
    engine = VllmEngine(config_of(weights, processes))
    await engine.start()
    try:
        assert (await engine.generate(prompt, GREEDY)).token_ids.tolist() == greedy(weights["first"], prompt)
        for version, name in enumerate(("second", "adapter", "first"), start=4):
            await engine.update(version, weights[name].folder, "recompute")
            sampled = await engine.generate(prompt, GREEDY)
            assert sampled.token_ids.tolist() == greedy(weights[name], prompt), f"of {name}"
            assert set(sampled.versions.tolist()) == {version}
    finally:
        await engine.close()


async def test_a_version_that_lacks_a_tensor_is_refused_by_every_rank_and_none_takes_a_part_of_it(
    weights: dict[str, Weights], prompt: Tokens, tmp_path: Path
) -> None:
    engine = VllmEngine(config_of(weights, 2))
    await engine.start()
    try:
        with pytest.raises(WeightsDamaged):
            await engine.update(4, cut_short(weights["second"].folder, tmp_path / "damaged"))
        sampled = await engine.generate(prompt, GREEDY)
        assert sampled.token_ids.tolist() == greedy(weights["first"], prompt)
        assert set(sampled.versions.tolist()) == {3}
    finally:
        await engine.close()


async def test_one_of_two_processes_killed_ends_the_engine_and_leaves_nothing(
    weights: dict[str, Weights], prompt: Tokens
) -> None:
    before, others = shared_buffers(), workers()
    engine = VllmEngine(config_of(weights, 2))
    await engine.start()
    ranks = [process for process in workers() if process not in others]
    assert len(ranks) == 2
    requests = [asyncio.create_task(engine.generate(prompt, SamplingConfig(max_tokens=290))) for _ in range(4)]
    await engine.generate(prompt, SamplingConfig(max_tokens=1))
    os.kill(ranks[-1].pid, signal.SIGKILL)
    outcomes = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), LIMIT)
    assert all(isinstance(outcome, EngineFailure) for outcome in outcomes)
    await asyncio.wait_for(engine.close(), LIMIT)
    assert not [process for process in ranks if process.is_running()]
    await wait_until_async(lambda: shared_buffers() <= before, "the processes' shared buffers are removed")
