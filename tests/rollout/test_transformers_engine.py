"""The transformers engine's own promises, beside the contract of all engines (test_engines.py): what fails is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace_core.errors import InvalidRequest, TimedOut, WeightsDamaged
from headrace_lab.waiting import wait_until_async
from headrace_learner.models.pretrained import build
from headrace_rollout.engines.engine import EngineConfig, EngineFailure, RequestRefused, SamplingConfig
from headrace_rollout.engines.transformers import engine as transformers_engine
from headrace_rollout.engines.transformers.decode_thread import WeightUpdate
from headrace_rollout.engines.transformers.decoder import Decoder
from headrace_rollout.engines.transformers.engine import TransformersEngine
from headrace_rollout.engines.transformers.kv_cache import GROUPED_ATTENTION
from headrace_rollout.engines.transformers.policy_model import PolicyModel

from .tiny_model import VOCABULARY, save, tiny_model

PROMPT = np.array([3, 4, 5], np.int32)
LONG = SamplingConfig(max_tokens=60_000, temperature=1.0)
LIMIT = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model(0, context=65_536)
    model.generation_config.eos_token_id = model.config.eos_token_id = None  # a request lasts as long as it is let
    return save(model, tmp_path / "model")


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[TransformersEngine]:
    made = TransformersEngine(EngineConfig(folder, max_model_len=65_000, max_running=8))
    await made.start()
    yield made
    await made.close()


async def in_flight(engine: TransformersEngine, count: int) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in range(count)]
    await wait_until_async(lambda: engine.running == count, f"{count} requests run", pause=0.001)
    return tasks


def decode_threads() -> int:
    return sum(thread.name == "headrace-decode" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (PROMPT, SamplingConfig(64_998), "65001 tokens, .* exceed max_context 65000"),
        (PROMPT, SamplingConfig(0), "max_tokens is 0"),
        (PROMPT, SamplingConfig(4, temperature=-1.0), "out of range"),
        (PROMPT, SamplingConfig(4, temperature=float("nan")), "out of range"),
        (PROMPT, SamplingConfig(4, top_p=0.0), "out of range"),
        (PROMPT, SamplingConfig(4, distribution=True), "started without `distributions`"),
        (np.array([VOCABULARY], np.int32), SamplingConfig(4), "token ids in 0 … 63"),
        (np.array([], np.int32), SamplingConfig(4), "at least one"),
    ],
)
async def test_what_cannot_be_served_is_refused_and_the_engine_goes_on(
    engine: TransformersEngine, prompt: Any, sampling: SamplingConfig, message: str
) -> None:
    with pytest.raises(RequestRefused, match=message):
        await engine.generate(prompt, sampling)
    with pytest.raises(RequestRefused):
        await engine.score(PROMPT, start=0)
    assert len((await engine.generate(PROMPT, SamplingConfig(4))).token_ids) == 4
    assert engine.running == 0


async def test_a_failing_step_fails_all_in_flight_and_all_after_with_its_cause(engine: TransformersEngine) -> None:
    tasks = await in_flight(engine, 3)
    decoder = engine._started()
    parameter = decoder.model.model.model.norm.weight
    wrong = WeightUpdate(1, [(parameter, torch.ones(7))], "keep_kv")
    engine._thread.submit(wrong)  # a shape that `stage` would have refused: the next forward pass raises
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT)
    for result in results:
        assert isinstance(result, EngineFailure)
        assert isinstance(result.__cause__, RuntimeError)
        assert "the decode thread failed: RuntimeError" in result.message
    with pytest.raises(EngineFailure, match="the decode thread failed: RuntimeError"):
        await engine.generate(PROMPT, SamplingConfig(4))
    with pytest.raises(EngineFailure, match="the decode thread failed: RuntimeError"):
        await engine.score(PROMPT, start=1)
    assert engine.running == 0


async def test_close_fails_what_is_in_flight_and_leaves_no_thread(folder: Path) -> None:
    before = decode_threads()
    engine = TransformersEngine(EngineConfig(folder, max_model_len=65_000))
    await engine.start()
    assert decode_threads() == before + 1
    tasks = await in_flight(engine, 3)
    await engine.close()
    await engine.close()
    assert decode_threads() == before
    for result in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT):
        assert isinstance(result, EngineFailure)
        assert result.message == "the engine was closed"
    with pytest.raises(EngineFailure, match="closed"):
        await engine.generate(PROMPT, SamplingConfig(4))


async def test_a_cancelled_request_is_no_longer_computed(engine: TransformersEngine) -> None:
    first, second = await in_flight(engine, 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await wait_until_async(lambda: engine.running == 1, "one request runs", pause=0.001)
    busy = engine.busy_seconds
    second.cancel()
    await wait_until_async(lambda: engine.running == 0, "no request runs", pause=0.001)
    assert engine.busy_seconds > busy
    assert engine._started().running == engine._started().waiting == 0


async def test_damaged_weights_leave_the_engine_on_the_version_it_has(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    with pytest.raises(WeightsDamaged, match="no safetensors file"):
        await engine.update(1, tmp_path)
    assert engine.version == 0
    assert (await engine.generate(PROMPT, SamplingConfig(4))).versions.tolist() == [0] * 4


async def test_a_drain_takes_as_long_as_requests_sample_and_is_given_up_when_they_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "TURN_SECONDS", 0.0)
    engine = TransformersEngine(EngineConfig(folder, max_model_len=65_000, max_running=8, update_timeout=0.5))
    await engine.start()
    (task,) = await in_flight(engine, 1)
    drain = asyncio.create_task(engine.update(1, folder, "drain"))
    done, _ = await asyncio.wait([drain], timeout=4 * 0.5)
    assert not done
    release, step = threading.Event(), Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda _: release.wait(LIMIT))
    with pytest.raises(TimedOut, match="for the decode thread to take version 1"):
        await asyncio.wait_for(drain, LIMIT)
    monkeypatch.setattr(Decoder, "step", step)
    release.set()
    assert engine.version == 0
    report = await engine.update(2, folder, "keep_kv")
    assert (report.version, report.requests_in_flight, engine.version) == (2, 1, 2)
    task.cancel()
    await engine.close()


async def test_tokens_are_counted_while_a_request_runs(engine: TransformersEngine) -> None:
    await engine.generate(PROMPT, SamplingConfig(4))
    assert engine.sampled_tokens == 4
    (task,) = await in_flight(engine, 1)
    await wait_until_async(lambda: engine.sampled_tokens > 14, "ten tokens of a request in flight", pause=0.001)
    assert not task.done()
    task.cancel()


async def test_a_decode_thread_that_hangs_is_found_by_a_probe(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.probe(10.0)
    release = threading.Event()
    monkeypatch.setattr(Decoder, "step", lambda _: release.wait(LIMIT))
    (task,) = await in_flight(engine, 1)
    with pytest.raises(EngineFailure, match="the decode thread's next turn"):
        await engine.probe(0.2)
    release.set()
    await engine.probe(10.0)
    task.cancel()


async def test_an_update_that_is_cancelled_while_it_drains_is_not_applied(
    engine: TransformersEngine, folder: Path
) -> None:
    (task,) = await in_flight(engine, 1)
    drain = asyncio.create_task(engine.update(1, folder, "drain"))
    await wait_until_async(lambda: engine._thread._update is not None, "the update waits", pause=0.001)
    drain.cancel()
    report = await engine.update(2, folder)
    assert report.version == engine.version == 2
    task.cancel()


async def test_a_start_that_fails_names_the_cause(tmp_path: Path) -> None:
    engine = TransformersEngine(EngineConfig(tmp_path / "absent"))
    with pytest.raises(EngineFailure, match="absent"):
        await engine.start()
    await engine.close()


async def test_a_start_has_a_time_limit(folder: Path) -> None:
    engine = TransformersEngine(EngineConfig(folder, start_timeout=0.0))
    with pytest.raises(EngineFailure, match="was not loaded within 0 s"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize("attention", ["nobody/kernel", "flash_attention_2"])
async def test_the_attention_that_a_config_names_is_not_loaded(tmp_path: Path, attention: str) -> None:
    """It may be code of a hub, or of a library that is not there."""
    folder = save(tiny_model(seed=11), tmp_path / "model")
    change_config(folder, _attn_implementation=attention)
    plain = PolicyModel(EngineConfig(folder, max_model_len=64, max_running=2)).model.config._attn_implementation
    assert plain == GROUPED_ATTENTION
    assert build(AutoModelForCausalLM, folder, False).config._attn_implementation == "sdpa"


async def test_weights_that_are_a_pickle_are_not_loaded(tmp_path: Path) -> None:
    model = tiny_model(seed=11)
    folder = save(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        PolicyModel(EngineConfig(folder, max_model_len=64, max_running=2))
    with pytest.raises(InvalidRequest, match="safetensors"):
        build(AutoModelForCausalLM, folder, False)


def change_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
