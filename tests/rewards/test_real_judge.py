"""A judge that is real: vLLM's server in OpenAI's protocol. The model knows nothing of grading; that every answer is of
the schema is the doing of the server, which was asked for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_lab.paths import ROOT
from headrace_lab.rewards import score_once
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build

MODEL = ROOT / "examples" / "adder" / "model"
"""Takes any text, byte by byte; 256 tokens with the answer."""
KEY = "sk-of-the-judge"
START_SECONDS, END_SECONDS = 330, 20
"""The start costs some 50 s of processor time, on two cores at best."""

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(420)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def started(port: int, log: Path) -> subprocess.Popen[bytes]:
    """vLLM's server, once it answers."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)]
    command += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4"]
    command += ["--distributed-executor-backend", "uni"]  # one process less to import vLLM
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=2).is_success:
                return process
        except httpx.TransportError:
            time.sleep(0.25)
    end(process)
    pytest.fail(f"vLLM's server was not there after {START_SECONDS} s, or ended:\n{log.read_text()[-3000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """The server and its engine; the group is ours alone."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):  # none of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_SECONDS)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its base URL."""
    port = free_port()
    process = started(port, tmp_path_factory.mktemp("judge") / "vllm.log")
    yield f"http://127.0.0.1:{port}/v1"
    end(process)


async def graded(url: str, key: str, **grader: Any) -> list[Outcome]:
    question = {"role": "user", "content": "Is {{ sample.output_text }} {{ item.answer }}?"}
    described = {"name": "judged", "model": "judge", "input": [question], "timeout": 60, "steps": False, **grader}
    reward = build(described, RewardPermissions(judge_url=url, judge_key=key))
    return await score_once(reward, [Sample(text, {"answer": 42}) for text in ("42", "41", "40")])


async def test_a_real_server_keeps_to_the_schemas(judge: str) -> None:
    labels = {"type": "label_model", "labels": ["right", "wrong", "unsure"]}
    sampling = {"temperature": 1.0, "seed": 3, "max_completions_tokens": 64}
    some, every, scores, refused = await asyncio.gather(
        graded(judge, KEY, **labels, passing_labels=["right"], sampling_params=sampling),
        graded(judge, KEY, **labels, passing_labels=labels["labels"], sampling_params=sampling),
        graded(judge, KEY, type="score_model", range=[0, 5], sampling_params=sampling),
        graded(judge, "sk-another", type="score_model"),
    )
    assert all(outcome in (Score(0.0), Score(1.0)) for outcome in some)
    assert every == [Score(1.0)] * 3
    assert all(isinstance(outcome, Score) and 0 <= outcome.value <= 5 for outcome in scores), scores
    assert [outcome.kind for outcome in refused if isinstance(outcome, Failure)] == ["unavailable"] * 3
