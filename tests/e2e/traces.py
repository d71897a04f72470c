"""What a job leaves on the machine and in Redis, as a user sees it from outside: processes, shared memory, keys."""

from __future__ import annotations

from pathlib import Path

import psutil
import redis

from headrace_core.redis_access.keys import JobKeys
from headrace_core.storage.weight_store import default_root
from headrace_gateway.service.embedded_redis import running
from headrace_lab.services.service import Service
from headrace_lab.waiting import wait_until

WORKS = ("WorkerActor", "headrace_rewards.sandbox", "JobControllerActor", "EngineCore")
"""In the command line of every process that a job has."""
SAID = ("job", "history:", "thinned", "summary", "marks", "checkpoints", "workers", "rewards", "changes", "published")
BOOKS = ("ledger", "steps", "rollouts", "signals", "group:", "ended", "failed", "drains", "mending")
"""How the keys begin that an ended job keeps for good: what was asked for, said and measured, and its books: which
groups were in which step, and which are forgotten next. The groups' bytes are gone."""


class Traces:
    """Of the jobs of one service."""

    def __init__(self, service: Service, data_dir: Path) -> None:
        self._service = psutil.Process(service.pid)
        address = running(data_dir / "redis")
        self.redis = redis.Redis.from_url(address)
        self._data_dir = data_dir

    def processes(self) -> list[str]:
        """Of any job, by their command lines."""
        found = []
        for process in self._service.children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if any(work in line for work in WORKS):
                found.append(line)
        return found

    def rewards(self) -> list[str]:
        """Processes of rewards: every rollout worker has one, from its start to its end."""
        return [line for line in self.processes() if "headrace_rewards.sandbox" in line]

    def at_rest(self, job_id: str) -> bool:
        """Whether its controller has said so for the status that it has now."""
        return bool(self.redis.hexists(JobKeys(job_id).job, "at_rest"))

    def weights(self, job_id: str) -> list[Path]:
        """Its published versions, whole or in part."""
        return list(default_root().glob(f"{job_id}/*"))

    def kept_for_more(self, job_id: str) -> list[Path]:
        """Snapshots, and half-written checkpoints and models: of use as long as the job may go on."""
        output = self._data_dir / "jobs" / job_id
        return [*default_root().glob(f"snapshots/{job_id}/*"), *output.glob("**/*.partial")]

    def needless_keys(self, job_id: str) -> list[str]:
        """Keys of an ended job that hold what nobody will ask for again, and do not expire by themselves."""
        prefix = JobKeys(job_id).prefix
        lasting = [key for key in self.redis.scan_iter(f"{prefix}*", count=1000) if self.redis.ttl(key) == -1]
        assert lasting, f"{job_id} has no keys"
        names = [key.decode().removeprefix(prefix) for key in lasting]
        return [name for name in names if not name.startswith(SAID + BOOKS)]

    def rests(self, job_id: str, alone: bool = True) -> None:
        """Waits until the job is at rest; then nothing of it is left that should not be. `alone`: nor of any other."""
        wait_until(lambda: self.at_rest(job_id), f"{job_id} comes to rest")
        assert not (weights := self.weights(job_id)), weights
        if alone:
            wait_until(lambda: not self.processes(), lambda: f"no process is left: {self.processes()}")
        if self.redis.hexists(JobKeys(job_id).job, "finished_at"):
            assert not (files := self.kept_for_more(job_id)), files
            assert not (keys := self.needless_keys(job_id)), keys
