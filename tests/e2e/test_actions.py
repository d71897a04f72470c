"""Pause, resume and cancel at any moment of a job, through the whole system, repeated and crossed.

Moments are held by real means: a reward whose import or whose call waits while a file is there, a learner that is
stopped with SIGSTOP, a job that waits for the cores of another.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace_lab.services.service import Service
from headrace_lab.waiting import wait_until

from .traces import Traces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BATCH = 4
"""Groups a step of the service's small jobs; their max_staleness is 4."""
REWARD = """
import os, time
HERE = os.path.dirname(__file__)

def wait(name):
    while os.path.exists(os.path.join(HERE, name)):
        time.sleep(0.02)

wait("hold-import")

def graded(sample, item):
    wait("hold-call")
    return float(item["answer"] in sample["output_text"])
"""


class Held:
    """A reward that waits while it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / "held_reward.py"
        file.write_text(REWARD)
        self.grader = {"type": "function", "name": "graded", "function": f"{file}:graded", "timeout": 600}

    def hold(self, what: str) -> None:
        (self._folder / f"hold-{what}").touch()

    def release(self) -> None:
        for file in self._folder.glob("hold-*"):
            file.unlink()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Traces]]:
    data_dir = tmp_path_factory.mktemp("actions") / "data"
    service = Service(data_dir)
    traces = Traces(service, data_dir)
    yield service, traces
    traces.redis.close()
    assert service.stop() == 0


def act(service: Service, job_id: str, *acts: str) -> list[int]:
    """The answers' HTTP statuses: one client after the other where there is one act, else all at once."""

    def post(name: str) -> int:
        return httpx.post(f"{service.address}/v1/fine_tuning/jobs/{job_id}/{name}", timeout=30).status_code

    with ThreadPoolExecutor(len(acts)) as clients:
        return list(clients.map(post, acts))


def status(service: Service, job_id: str) -> str:
    return service.openai.fine_tuning.jobs.retrieve(job_id).status


def ledger(service: Service, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert found["balanced"]
    return found


def waits_for_rewards(service: Service, job_id: str) -> bool:
    """The pacing window is full, and the learner has too little for a step."""
    states = ledger(service, job_id)["states"]
    outstanding = states["leased"] + states["queued"] + states["claimed"]
    return bool(outstanding == (4 + 1) * BATCH and states["claimed"] == 0 and states["queued"] < BATCH)


def test_whoever_asks_for_what_while_a_job_waits_it_comes_to_rest_and_leaves_nothing(
    served: tuple[Service, Traces],
) -> None:
    service, traces = served
    first = service.submit(n_steps=400)
    brief = service.submit(n_steps=1)
    assert act(service, brief, "cancel") == [200]  # its controller may not even have begun
    traces.rests(brief, alone=False)

    queued = service.submit(n_steps=1)
    wait_until(lambda: any("waits for" in m for m in service.messages(queued)), "the job waits for cores")
    assert act(service, queued, "pause") == act(service, queued, "pause") == [200]
    traces.rests(queued, alone=False)
    assert act(service, queued, "resume") == act(service, queued, "resume") == [200]
    assert status(service, queued) == "queued"
    assert act(service, queued, "pause", "resume", "cancel", "cancel", "pause")[2:4] == [200, 200]
    traces.rests(queued, alone=False)
    assert act(service, queued, "resume") == [400]
    told = service.messages(queued)
    assert told.count("cancelled") == 1
    assert [m for m in told if m in ("pausing", "Resumed") or m.startswith("paused;")][:3] == [
        "pausing", "paused; resume goes on from here", "Resumed"
    ]  # fmt: skip

    assert act(service, first, "cancel") == [200]  # it starts, evaluates or trains
    traces.rests(first)


def test_a_pause_gives_leases_back_and_is_crossed_by_a_resume_and_a_cancel(
    served: tuple[Service, Traces], tmp_path: Path
) -> None:
    service, traces = served
    reward = Held(tmp_path)
    job = service.submit(reward.grader, n_steps=400, checkpoint_interval=400, eval_interval=400)
    service.wait_for_step(job, 2)
    reward.hold("call")
    wait_until(lambda: waits_for_rewards(service, job), "every group of the window waits for its reward")
    held = ledger(service, job)["states"]["leased"]
    assert act(service, job, "pause") == [200]
    traces.rests(job)
    books = ledger(service, job)
    assert books["states"]["leased"] == held > 0
    newest = service.get(f"/v1/fine_tuning/jobs/{job}/ledger?group={books['admitted'] - 1}")
    assert newest["history"][-1]["note"] == "given back"

    reward.hold("import")
    assert act(service, job, "resume") == [200]
    wait_until(lambda: any(m.startswith("learner is ready") for m in service.messages(job)[-2:]), "the learner loads")
    assert act(service, job, "pause") == [200]  # the rollout worker still starts
    traces.rests(job)
    reward.release()

    before = ledger(service, job)["version"]
    assert act(service, job, "resume") == [200]
    service.wait_for_step(job, before + 1)
    learner = service.pid_of(job, "learner")
    os.kill(learner, signal.SIGSTOP)
    assert act(service, job, "pause") == [200]
    wait_until(lambda: not traces.rewards(), "the rollout worker has stopped")
    assert act(service, job, "resume") == [200]  # the pause waits for a learner that stands still
    os.kill(learner, signal.SIGCONT)
    service.wait_for_step(job, ledger(service, job)["version"] + 2)
    assert service.pid_of(job, "learner") != learner

    os.kill(service.pid_of(job, "learner"), signal.SIGSTOP)
    assert act(service, job, "pause") == [200]
    wait_until(lambda: not traces.rewards(), "the rollout worker has stopped")
    assert not traces.at_rest(job)
    assert act(service, job, "cancel") == [200]
    traces.rests(job)
    steps = [s["step"] for s in service.metrics(job, "step")]
    assert steps == list(range(1, len(steps) + 1))
    assert ledger(service, job)["states"]["leased"] == 0


def test_while_the_first_evaluation_waits_while_drained_and_while_a_worker_is_started_again(
    served: tuple[Service, Traces], tmp_path: Path
) -> None:
    service, traces = served
    reward = Held(tmp_path)
    job = service.submit(reward.grader, n_steps=400, checkpoint_interval=1)
    reward.hold("call")
    wait_until(lambda: any(m.startswith("rollout-0 is ready") for m in service.messages(job)), "the worker is ready")
    assert act(service, job, "pause") == [200]
    traces.rests(job)
    assert service.metrics(job, "evaluation") == []
    reward.release()

    assert act(service, job, "resume") == [200]
    service.wait_for_step(job, 1)
    assert [e["step"] for e in service.metrics(job, "evaluation")] == [0]
    httpx.post(f"{service.address}/v1/fine_tuning/jobs/{job}/workers/rollout-0/drain").raise_for_status()
    wait_until(lambda: ledger(service, job)["states"]["leased"] == 0, "the worker is drained")
    os.kill(service.pid_of(job, "rollout-0"), signal.SIGKILL)
    wait_until(lambda: any("is started again" in m for m in service.messages(job)), "its death is noticed")
    assert act(service, job, "cancel", "cancel") == [200, 200]
    traces.rests(job)
    assert status(service, job) == "cancelled"


@pytest.mark.parametrize("seed", [11])
def test_whatever_is_asked_for_and_when_the_job_ends_and_its_books_balance(
    served: tuple[Service, Traces], seed: int
) -> None:
    service, traces = served
    chance = random.Random(seed)
    job = service.submit(n_steps=8, checkpoint_interval=3, eval_interval=8)
    for _ in range(12):
        acts = chance.choices(("pause", "resume"), k=chance.choice((1, 1, 2)))
        answers = act(service, job, *acts)
        assert set(answers) <= {200, 400}
        time.sleep(chance.choice((0.0, 0.1, 0.5, 1.5, 4.0)))
        ledger(service, job)
    if status(service, job) == "paused":
        act(service, job, "resume")
    service.wait(job, "succeeded")
    traces.rests(job)
    books = ledger(service, job)
    assert (books["version"], books["states"]["trained"]) == (8, 8 * BATCH)
    assert sorted({s["step"] for s in service.metrics(job, "step")}) == list(range(1, 9))
    assert books["largest_age"] <= 4
