"""Errors forced in real worker processes: no log file of theirs, of Ray or of this process holds a secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayTaskError

from headrace_controller.placement import WorkerActor
from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.worker import WorkerConfig
from headrace_gateway.service.ray_connection import RayConnection
from headrace_lab.services.jobs import worker_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECRETS = {
    "api_key": "hr-" + "aB3_-" * 8 + "xyz",
    "bearer": "bearerBEARERbearer0123456789",
    "judge": "judge+JUDGE/judge=0123456789",
    "endpoint": "endpointENDPOINT0123456789",
    "redis": "redis%2FREDIS%2Fredis0123456789",
}
WORKER = '''
import asyncio, logging, sys, threading, traceback, warnings

import transformers
import uvicorn
import vllm.logger

from headrace_core.logs import get_logger
from headrace_core.redis_access.client import connect


def fails(secrets):
    raise ValueError(f"nobody foresaw {secrets}") from KeyError(secrets)


class Worker:
    """Says what it was given on every way that leads into a log."""

    @classmethod
    def from_config(cls, config):
        return cls(config)

    def __init__(self, config):
        connect(config.redis_url)
        rules = config.reward_rules
        self.secrets = f"{config.job_id} {config.redis_url} {rules.judge_key} {rules.hosts[0]} Bearer {rules.hosts[1]}"
        if config.worker == "fails at once":
            fails(self.secrets)

    async def start(self):
        secrets = self.secrets
        for name in ("vllm.engine", "transformers.models", "uvicorn.error", "ray.serve", "any.other"):
            logger = logging.getLogger(name)
            logger.error("%s was given %s", name, secrets)
            logger.error("%s was given %s", secrets)  # does not fit
            try:
                fails(secrets)
            except ValueError as error:
                logger.exception("%s failed", name)
                get_logger(name).error("failed", of=secrets, exc_info=error)
                traceback.print_exc()
        vllm.logger.init_logger("vllm.x").warning("was given %s", secrets)
        print("printed", secrets)
        print("printed", secrets, file=sys.stderr)
        warnings.warn(secrets)
        thread = threading.Thread(target=fails, args=(secrets,))
        thread.start()
        thread.join()
        task = asyncio.ensure_future(self.task())
        await asyncio.wait([task])
        del task
        asyncio.get_running_loop().call_soon(fails, secrets)
        await asyncio.sleep(0.1)
        return {"said": "all"}

    async def task(self):
        fails(self.secrets)

    async def run(self):
        fails(self.secrets)
'''


def config(worker: str) -> WorkerConfig:
    return worker_config(
        SECRETS["api_key"],
        worker,
        redis_url=f"redis://:{SECRETS['redis']}@127.0.0.1:1/0",
        reward_rules=RewardPermissions(hosts=(SECRETS["endpoint"], SECRETS["bearer"]), judge_key=SECRETS["judge"]),
    )


def test_no_log_of_a_worker_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "telling_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("REWARD_ENDPOINT_TOKEN", SECRETS["endpoint"])
    with RayConnection(None) as connection:
        actor = ray.remote(WorkerActor).options(num_cpus=0).remote("telling_worker:Worker", config("worker-0"))
        assert ray.get(actor.start.remote(), timeout=120)["said"] == "all"
        with pytest.raises(RayTaskError, match="nobody foresaw"):
            ray.get(actor.run.remote(), timeout=60)
        dead = ray.remote(WorkerActor).options(num_cpus=0).remote("telling_worker:Worker", config("fails at once"))
        with pytest.raises(RayTaskError, match="nobody foresaw"):
            ray.get(dead.start.remote(), timeout=120)
        ray.get(dead.stop.remote(), timeout=60)
        folder = connection._folder
        assert folder is not None
        logs = {file: file.read_text(errors="replace") for file in folder.path.rglob("logs/**/*") if file.is_file()}
    logs[Path("this process")] = "".join(capfd.readouterr())
    workers = "".join(text for file, text in logs.items() if file.name.startswith("worker-"))
    for name in ("vllm.engine", "transformers.models", "uvicorn.error", "any.other", "printed", "Traceback"):
        assert name in workers
    assert workers.count("nobody foresaw") >= 15
    found = [(file.name, name) for file, text in logs.items() for name, secret in SECRETS.items() if secret in text]
    assert found == []
