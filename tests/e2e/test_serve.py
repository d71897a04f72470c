"""A server stopped in the middle of a job and started again. (Alone on its folder: tests/gateway/test_serve.py.)"""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from headrace_lab.services.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_job_goes_on_after_the_server_was_stopped(tmp_path: Path) -> None:
    first = Service(tmp_path / "data")
    job_id = first.submit(n_steps=40, checkpoint_interval=7)
    first.wait_for_step(job_id, 9)
    family = psutil.Process(first.pid).children(recursive=True)
    assert first.stop() == 0
    left = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == [], "processes outlived the server"

    second = Service(tmp_path / "data")
    try:
        before = second.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")["version"]
        assert before >= 9
        second.wait(job_id, "succeeded")
        ledger = second.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
        assert ledger["balanced"]
        assert ledger["states"]["trained"] == 40 * 4
        steps = [s["step"] for s in second.metrics(job_id, "step")]
        assert steps == list(range(1, 41)), "a step was lost or trained twice"
    finally:
        assert second.stop() == 0
