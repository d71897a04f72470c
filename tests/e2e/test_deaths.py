"""A worker that dies is noticed, named and replaced; its groups are taken up again."""

from __future__ import annotations

import os
import re
import signal

import pytest

from .service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def pid_of(service: Service, job_id: str, worker: str) -> int:
    """Of the worker's newest process, by what the job said when it was ready."""
    found = [m for message in service.told(job_id) if (m := re.match(rf"{worker} is ready: .*pid (\d+)", message))]
    return int(found[-1].group(1))


@pytest.mark.parametrize("worker", ["learner", "rollout-0"])
def test_a_killed_worker_is_replaced_and_no_group_is_lost(service: Service, worker: str) -> None:
    job_id = service.submit(n_steps=12, checkpoint_interval=3)
    service.wait_for_step(job_id, 4)
    os.kill(pid_of(service, job_id, worker), signal.SIGKILL)
    service.wait(job_id, "succeeded")
    assert any(message.startswith(f"{worker} failed and is started again") for message in service.told(job_id))
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == 12 * 4
    assert ledger["largest_age"] <= 4
    assert sorted(s["step"] for s in service.metrics(job_id, "step")) == list(range(1, 13))
