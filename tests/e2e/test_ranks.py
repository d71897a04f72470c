"""A learner of two ranks under a real Ray; where one of them dies, all start again and no group is lost."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from .service import START_SECONDS, Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HOST = "127.0.0.21"
"""Loopback: Ray replaces 127.0.0.1 by the machine's outward address."""


@pytest.fixture
def three_cores() -> Iterator[dict[str, str]]:
    """Environment for a Ray that counts three cores: two ranks and a rollout worker, whatever this machine has."""
    temporary = tempfile.mkdtemp(prefix="hr-", dir="/tmp")  # for sockets, whose paths are limited to 107 bytes
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--temp-dir={temporary}", f"--node-ip-address={HOST}", "--num-cpus=3"]
    options += ["--include-dashboard=false", f"--object-store-memory={2**27}"]
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
        stdout=subprocess.DEVNULL,
        env=os.environ | secret | {"RAY_USAGE_STATS_ENABLED": "0"},
        start_new_session=True,
    )
    try:
        _await_port(head, port)
        yield secret | {"RAY_ADDRESS": f"{HOST}:{port}"}
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(START_SECONDS):
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            with pytest.raises(subprocess.TimeoutExpired):  # it still runs
                process.wait(1)
    raise AssertionError(f"Ray was not up within {START_SECONDS} s")


def test_two_ranks_train_a_job_and_start_again_together(three_cores: dict[str, str], tmp_path: Path) -> None:
    service = Service(tmp_path / "data", three_cores)
    try:
        job_id = service.submit(n_steps=5, checkpoint_interval=2, learner_ranks=2)
        service.wait_for_step(job_id, 2)
        (pid,) = re.findall(r"learner is ready: .*rank 1 pid (\d+)", "\n".join(service.told(job_id)))
        os.kill(int(pid), signal.SIGKILL)
        service.wait(job_id, "succeeded")
        told = service.told(job_id)
        assert sum(message.startswith("learner failed and is started again") for message in told) == 1
        ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
        assert ledger["balanced"]
        assert ledger["states"]["trained"] == 5 * 4
        AutoModelForCausalLM.from_pretrained(tmp_path / "data" / "jobs" / job_id / "model")
    finally:
        assert service.stop() == 0
