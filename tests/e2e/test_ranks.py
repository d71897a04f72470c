"""A learner of two ranks under a real Ray; where one of them dies, all start again and no group is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from headrace_lab.services.ray_cluster import RayCluster
from headrace_lab.services.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def three_cores() -> Iterator[dict[str, str]]:
    """Environment for a Ray that counts three cores: two ranks and a rollout worker, whatever this machine has."""
    cluster = RayCluster(3)
    try:
        yield cluster.environment
    finally:
        cluster.stop()


def test_two_ranks_train_a_job_and_start_again_together(three_cores: dict[str, str], tmp_path: Path) -> None:
    service = Service(tmp_path / "data", three_cores)
    try:
        job_id = service.submit(n_steps=5, checkpoint_interval=2, learner_ranks=2)
        service.wait_for_step(job_id, 2)
        os.kill(service.pid_of(job_id, "rank-1"), signal.SIGKILL)
        service.wait(job_id, "succeeded")
        told = service.messages(job_id)
        assert sum(message.startswith("learner failed and is started again") for message in told) == 1
        ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
        assert ledger["balanced"]
        assert ledger["states"]["trained"] == 5 * 4
        AutoModelForCausalLM.from_pretrained(tmp_path / "data" / "jobs" / job_id / "model")
    finally:
        assert service.stop() == 0
