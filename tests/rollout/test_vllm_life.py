"""What only an engine with processes of its own can get wrong: their death, a start that takes too long, leftovers."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from headrace_core.errors import FAILED_BY_ITSELF
from headrace_lab.waiting import wait_until_async
from headrace_rollout.engines.engine import EngineFailure, SamplingConfig
from headrace_rollout.engines.vllm.engine import VllmEngine

from .engine_cases import Weights, engine_config, import_vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),
    # A start of vLLM that fails leaves its ZeroMQ context to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
LIMIT = 60.0


@pytest.fixture(scope="module", autouse=True)
def imported_vllm() -> Iterator[None]:
    import_vllm()
    yield
    gc.collect()


def descendants() -> set[psutil.Process]:
    """All processes under this one, but for the one Python's multiprocessing keeps to the end."""
    children = psutil.Process().children(recursive=True)
    return {child for child in children if "multiprocessing.resource_tracker" not in " ".join(child.cmdline())}


async def test_updates_in_the_midst_of_every_scoring_do_not_keep_it_from_its_end(
    weights: dict[str, Weights], prompt: npt.NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VllmEngine(engine_config(weights))
    await engine.start()
    submit, updates = engine._submit, list[asyncio.Task[Any]]()
    folders = itertools.cycle(weights[name].folder for name in ("second", "first"))

    async def with_an_update(tokens: npt.NDArray[np.int32], params: Any, on_tokens: Any = None) -> Any:
        updates.append(asyncio.create_task(engine.update(engine.version + 1 + len(updates), next(folders))))
        final = await submit(tokens, params, on_tokens)
        await asyncio.wait(updates, timeout=5.0)  # the last one comes only when the scoring has ended
        return final

    try:
        with monkeypatch.context() as busy:
            busy.setattr(engine, "_submit", with_an_update)
            scored = await asyncio.wait_for(engine.score(prompt, 2), LIMIT)
        reports = await asyncio.wait_for(asyncio.gather(*updates), LIMIT)
        assert [report.version > scored.version for report in reports] == [False] * (len(reports) - 1) + [True]
        assert engine.version == reports[-1].version
    finally:
        await engine.close()


async def test_a_dead_worker_process_fails_every_request_and_leaves_no_process(
    weights: dict[str, Weights], prompt: npt.NDArray[np.int32]
) -> None:
    before = descendants()
    engine = VllmEngine(engine_config(weights))
    await engine.start()
    started = descendants() - before
    worker = max(started, key=lambda process: process.memory_info().rss)
    requests = [asyncio.create_task(engine.generate(prompt, SamplingConfig(max_tokens=290))) for _ in range(8)]
    await engine.generate(prompt, SamplingConfig(max_tokens=1))
    os.kill(worker.pid, signal.SIGKILL)
    outcomes = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), LIMIT)
    assert all(isinstance(outcome, EngineFailure) and "died" in str(outcome) for outcome in outcomes)
    with pytest.raises(EngineFailure):
        await engine.generate(prompt, SamplingConfig(max_tokens=1))
    with pytest.raises(EngineFailure):
        await engine.update(99, weights["second"].folder)
    await asyncio.wait_for(engine.close(), LIMIT)
    assert not [process for process in started if process.is_running()]


async def test_a_start_past_its_limit_fails_and_leaves_no_process(weights: dict[str, Weights]) -> None:
    before = descendants()
    engine = VllmEngine(dataclasses.replace(engine_config(weights), start_timeout=1.0))
    with pytest.raises(EngineFailure, match="not ready within 1 s"):
        await engine.start()
    assert descendants() <= before


async def test_a_start_that_is_cancelled_leaves_no_process(weights: dict[str, Weights]) -> None:
    before = descendants()
    starting = asyncio.create_task(VllmEngine(engine_config(weights)).start())
    await wait_until_async(lambda: bool(descendants() - before), "a process of vLLM's appears", pause=0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, LIMIT)
    assert descendants() <= before


async def test_a_start_that_fails_says_why_in_the_engines_own_words(weights: dict[str, Weights]) -> None:
    engine = VllmEngine(dataclasses.replace(engine_config(weights), kv_cache_gib=100_000.0))
    with pytest.raises(EngineFailure) as failure:
        await engine.start()
    assert re.search(r"vLLM did not start on .*: [\w.]*Error: .*memory", failure.value.message)
    assert "root cause" not in failure.value.message
    assert failure.value.code == FAILED_BY_ITSELF
