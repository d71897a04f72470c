"""The topology of docker/compose.yaml, end to end, without an engine: Redis, Ray head, gateway, learner and rollout
apart from each other, joined by a password, a token, and two shared folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from redis import Redis
from redis.exceptions import AuthenticationError

from headrace_lab.paths import ADDER
from headrace_lab.services.worker_processes import ready_processes
from headrace_lab.waiting import wait_until

from .separate import Separate

JOB_SECONDS = 300
STEPS, BATCH = 2, 4

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Separate]:
    with Separate(tmp_path) as parts:
        yield parts


def submit(client: OpenAI) -> str:
    settings = {
        "engine": "transformers",
        "n_steps": STEPS,
        "batch_size": BATCH,
        "group_size": 4,
        "max_tokens": 48,
        "max_context": 128,
        "max_running": 16,
        "learning_rate": 1e-4,
        "seed": 0,
    }
    reward = {"type": "function", "name": "correct", "function": f"{ADDER / 'reward.py'}:correct"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": reward, "hyperparameters": settings}}
    train = client.files.create(file=ADDER / "train.jsonl", purpose="fine-tune")
    return client.fine_tuning.jobs.create(model="headrace/tiny-adder", training_file=train.id, method=method).id


def ended(client: OpenAI, job_id: str) -> Any:
    def at_rest() -> bool:
        return client.fine_tuning.jobs.retrieve(job_id).status in ("succeeded", "failed", "cancelled")

    wait_until(at_rest, lambda: f"the job ends: {told(client, job_id)}", JOB_SECONDS, pause=0.5)
    return client.fine_tuning.jobs.retrieve(job_id)


def told(client: OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100).data]


def test_a_job_runs_over_separate_parts(parts: Separate) -> None:
    parts.start_redis()
    parts.start_node("head")
    parts.await_node("head")
    parts.start_node("gateway")
    parts.start_node("learner")
    address = parts.await_gateway()
    client = OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
    job_id = submit(client)
    # A job that is there before its nodes waits for them, as after the start of a machine.
    parts.start_node("rollout")
    parts.await_node("rollout")
    parts.await_node("learner")

    job = ended(client, job_id)
    assert job.status == "succeeded", told(client, job_id)
    ledger = httpx.get(f"{address}/v1/fine_tuning/jobs/{job_id}/ledger").raise_for_status().json()
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == STEPS * BATCH

    events = httpx.get(f"{address}/v1/fine_tuning/jobs/{job_id}/events?limit=100").raise_for_status().json()["data"]
    placed = {worker: parts.ran(pid) for worker, pid in ready_processes(events)}
    assert placed == {"learner": ["learner"], "rollout-0": ["rollout"]}
    assert list((parts.data / "jobs" / job_id).rglob("model.safetensors"))
    assert not list(parts.weights.rglob("*.safetensors")), "published weights outlive their job"

    with pytest.raises(AuthenticationError), Redis(port=parts.redis_port) as stranger:
        stranger.ping()

    for name in ("rollout", "learner", "gateway", "head", "redis"):
        parts.stop(name)
        assert not parts.left(name), f"{name} left processes"
