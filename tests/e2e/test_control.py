"""A job is changed while it runs, through the whole system: its bound, its learning rate, and who works for it."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from headrace_lab.services.service import SMALL, Service
from headrace_lab.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STALL_SECONDS = 16
"""After half of it without progress a job's workers are started again, after all of it the job pauses."""


def worker_status(service: Service, job: str, wanted: str) -> dict[str, Any]:
    """What is said of rollout-0 once it has the status."""
    found: dict[str, Any] = {}

    def has_it() -> bool:
        (worker,) = [w for w in service.get(f"{job}/workers")["data"] if w["id"] == "rollout-0"]
        found.update(worker)
        return bool(worker["status"] == wanted)

    wait_until(has_it, lambda: f"rollout-0 is {wanted}, and not {found['status']}")
    return found


def version_at_rest(service: Service, job: str) -> int:
    """Once the learner has trained what was queued."""
    ledger: dict[str, Any] = {}

    def rests() -> bool:
        ledger.update(service.get(f"{job}/ledger"))
        return bool(ledger["states"]["claimed"] == 0 and ledger["states"]["queued"] < SMALL["batch_size"])

    wait_until(rests, lambda: f"the learner comes to rest: {ledger}")
    return int(ledger["version"])


def test_a_running_job_is_changed_drained_and_goes_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    service = Service(tmp_path_factory.mktemp("changes") / "data", {"HEADRACE_STALL_TIMEOUT": str(STALL_SECONDS)})
    job_id = service.submit(n_steps=400, max_staleness=3, checkpoint_interval=50)
    job = f"/v1/fine_tuning/jobs/{job_id}"
    service.wait_for_step(job_id, 3)

    changed = httpx.patch(service.address + job + "/settings", json={"max_staleness": 1, "learning_rate": 3e-4}).json()
    (since,) = {c["from_version"] for c in changed["changes"]}
    assert since >= 3
    service.wait_for_step(job_id, since + 6)
    steps = service.metrics(job_id, "step")
    assert {s["learning_rate"] for s in steps if s["step"] <= since} == {1e-4}
    assert {s["learning_rate"] for s in steps if s["step"] > since} == {3e-4}
    trained = {s["step"]: {int(age) for age, m in s["ages"].items() if m["tokens"] > m["masked"]} for s in steps}
    assert max(max(ages, default=0) for step, ages in trained.items() if step > since) <= 1
    assert f"max_staleness 3 → 1 from version {since}, by local" in service.messages(job_id)

    assert httpx.post(f"{service.address}{job}/workers/rollout-0/drain").json()["status"] in ("draining", "drained")
    worker_status(service, job, "drained")
    stood = version_at_rest(service, job)
    time.sleep(STALL_SECONDS + 4)
    assert service.get(f"{job}/ledger")["version"] == stood
    assert service.wait(job_id, "running") == "running"
    assert any("every rollout worker is drained" in message for message in service.messages(job_id))
    httpx.post(f"{service.address}{job}/workers/rollout-0/undrain").raise_for_status()
    service.wait_for_step(job_id, stood + 3)
    worker_status(service, job, "running")

    assert service.get(f"{job}/weights")["published"][0]["bytes"] > 100_000
    queues = service.get(f"{job}/queues")
    assert queues["window"]["limit"] == 8
    assert service.get(f"{job}/ledger")["balanced"]
    service.openai.fine_tuning.jobs.cancel(job_id)
    assert service.stop() == 0
