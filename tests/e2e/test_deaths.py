"""What dies, or is stopped, is noticed, named and replaced; what cannot go on pauses, and goes on when resumed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from headrace_lab.services.service import Service
from headrace_lab.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.parametrize("worker", ["learner", "rollout-0"])
def test_a_killed_worker_is_replaced_and_no_group_is_lost(service: Service, worker: str) -> None:
    job_id = service.submit(n_steps=12, checkpoint_interval=3)
    service.wait_for_step(job_id, 4)
    os.kill(service.pid_of(job_id, worker), signal.SIGKILL)
    service.wait(job_id, "succeeded")
    assert any(message.startswith(f"{worker} failed and is started again") for message in service.messages(job_id))
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == 12 * 4
    assert ledger["largest_age"] <= 4
    assert sorted(s["step"] for s in service.metrics(job_id, "step")) == list(range(1, 13))


def says(service: Service, job_id: str, words: str) -> Callable[[], bool]:
    return lambda: any(words in message for message in service.messages(job_id))


def controller_pid(service: Service) -> int:
    (pid,) = [
        p.pid
        for p in psutil.Process(service.pid).children(recursive=True)
        if "JobControllerActor" in " ".join(p.cmdline())
    ]
    return int(pid)


SLOW_REWARD = """
import time

def slowly(sample, item):
    time.sleep(0.03)
    return float(item["answer"] in sample["output_text"])
"""


def test_a_worker_killed_during_an_evaluation_leaves_no_row_and_no_evaluation_unaccounted_for(
    service: Service, tmp_path: Path
) -> None:
    """Each evaluation takes seconds, so that the next one is due when one ends, and the kill falls in its middle."""
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    grader = {"type": "function", "name": "slow", "function": f"{tmp_path / 'slow.py'}:slowly"}
    steps, rows = 12, 256
    job_id = service.submit(grader, n_steps=steps, checkpoint_interval=4, eval_interval=1, eval_samples=rows)
    wait_until(lambda: len(service.metrics(job_id, "evaluation")) >= 1, "the base model is evaluated")
    first = service.metrics(job_id, "evaluation")[-1]
    service.wait_for_step(job_id, first["step"] + 1)
    until_due = time.time()
    time.sleep(first["seconds"] / 2)
    before = service.metrics(job_id, "evaluation")
    os.kill(service.pid_of(job_id, "rollout-0"), signal.SIGKILL)
    killed_at = time.time()
    service.wait(job_id, "succeeded")

    evaluations = service.metrics(job_id, "evaluation")
    after = evaluations[len(before) :]
    assert killed_at - max(until_due, before[-1]["time"]) < first["seconds"], "the kill came after an evaluation's end"
    assert after[0]["time"] - after[0]["seconds"] > killed_at, "an evaluation on record began before the kill"
    assert all(e["samples"] == rows and not e["generation_failed"] and not e["reward_failed"] for e in evaluations)
    made = [e["step"] for e in evaluations]
    left_out = [step for e in evaluations for step in e["left_out"]]
    assert made == sorted(set(made))
    assert made[-1] == steps
    assert sorted([*made, *left_out]) == list(range(steps + 1))
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == steps * 4


def test_a_stopped_worker_and_a_stopped_controller_are_replaced(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", {"HEADRACE_WATCHDOG_SECONDS": "8", "HEADRACE_MAX_RESTARTS": "10"})
    job_id = service.submit(n_steps=60, checkpoint_interval=10)
    service.wait_for_step(job_id, 2)
    stopped = [service.pid_of(job_id, "rollout-0")]
    os.kill(stopped[0], signal.SIGSTOP)
    wait_until(says(service, job_id, "rollout-0 is ended: its process did not answer"), "the worker's silence is told")
    service.wait_for_step(job_id, service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")["version"] + 2)
    stopped.append(controller_pid(service))
    os.kill(stopped[1], signal.SIGSTOP)
    wait_until(says(service, job_id, "the job's controller did not beat"), "the controller's silence is told")
    service.wait(job_id, "succeeded")
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in stopped), "the stopped processes are gone", 30)
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == 60 * 4
    metrics = httpx.get(service.address + "/metrics").text
    for act in ("reissue", "restart", "replace_controller"):
        assert f'headrace_watchdog_acts_total{{act="{act}",job="{job_id}"}}' in metrics
    assert service.stop() == 0


def test_a_job_whose_worker_may_not_be_restarted_pauses_and_goes_on_when_resumed(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", {"HEADRACE_MAX_RESTARTS": "0"})
    job_id = service.submit(n_steps=12, checkpoint_interval=3)
    service.wait_for_step(job_id, 4)
    os.kill(service.pid_of(job_id, "learner"), signal.SIGKILL)
    service.wait(job_id, "paused")
    why = service.get(f"/v1/fine_tuning/jobs/{job_id}")["paused_by"]
    assert why["code"] == "worker_failed"
    assert "learner failed and has used up its restarts" in why["message"]
    wait_until(says(service, job_id, "resume goes on from here"), "it has paused")
    httpx.post(f"{service.address}/v1/fine_tuning/jobs/{job_id}/resume", timeout=30).raise_for_status()
    service.wait(job_id, "succeeded")
    assert service.get(f"/v1/fine_tuning/jobs/{job_id}")["paused_by"] is None
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == 12 * 4
    assert service.stop() == 0
