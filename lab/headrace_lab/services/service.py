"""`headrace serve` as a user runs it: as a process, used only over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from ..paths import ADDER
from .child_processes import ending_with_parent
from .worker_processes import ready_processes

START_SECONDS = 180
"""Ray alone takes 5 s to start on an idle machine, and several times that on a busy one."""

SMALL = {
    "engine": "transformers",
    "n_steps": 3,
    "batch_size": 4,
    "group_size": 4,
    "max_tokens": 48,
    "max_context": 128,
    "max_running": 16,
    "learning_rate": 1e-4,
    "checkpoint_interval": 1,
    "eval_interval": 3,
    "eval_samples": 16,
}
"""A job that takes seconds."""


class Service:
    """One server process with the data folder `data_dir`, which ends when this process does."""

    def __init__(self, data_dir: Path, environment: dict[str, str] | None = None, log: Path | None = None) -> None:
        """`environment` is added to that of this process; the server's log is appended to `log`, by default
        `<data_dir>.log`. Raises `AssertionError` with the end of the log if the server does not start."""
        self._log = (log or data_dir.parent / f"{data_dir.name}.log").open("a")
        command = [sys.executable, "-m", "headrace_gateway", "serve", "--port", "0", "--data-dir", str(data_dir)]
        self._process = subprocess.Popen(
            ending_with_parent(command),
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
        try:
            self.address = self._await_address()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.openai = OpenAI(base_url=f"{self.address}/v1", api_key="unused", max_retries=0)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _await_address(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            for word in line.split():
                if word.startswith("http://"):
                    return word
        raise AssertionError(f"the server ended before it was up: {Path(self._log.name).read_text()[-2000:]}")

    def stop(self) -> int:
        """End the server by SIGINT, as Ctrl-C does; returns its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        status = self._process.wait(timeout=START_SECONDS)
        self._release()
        return status

    def ended(self) -> bool:
        """Whether the server process has ended; if so, releases this side's resources."""
        if self._process.poll() is None:
            return False
        self._release()
        return True

    def _release(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        self.openai.close()

    def get(self, route: str) -> Any:
        """The JSON response of a route."""
        answer = httpx.get(self.address + route, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def submit(
        self,
        grader: dict[str, Any] | None = None,
        *,
        model: str = "headrace/tiny-adder",
        rows: tuple[str, str] | None = None,
        **settings: Any,
    ) -> str:
        """Submit a job; returns its id. By default it trains on the adder's files, with a reward for correct answers.

        `rows`: ids of the training and validation files. `settings` are hyperparameters, in addition to `SMALL`.
        """
        training_file, validation_file = rows or (self.upload("train.jsonl"), self.upload("validation.jsonl"))
        grader = grader or {"type": "function", "name": "correct", "function": f"{ADDER / 'reward.py'}:correct"}
        method: Any = {
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "hyperparameters": SMALL | settings},
        }
        return self.openai.fine_tuning.jobs.create(
            model=model, training_file=training_file, validation_file=validation_file, method=method
        ).id

    def upload(self, name: str) -> str:
        """Upload a file of the adder example; returns its id."""
        return self.openai.files.create(file=ADDER / name, purpose="fine-tune").id

    def wait(self, job_id: str, *statuses: str, timeout: float = 240) -> str:
        """Wait until the job has one of these statuses, and return it. Raises AssertionError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self.openai.fine_tuning.jobs.retrieve(job_id).status
            if status in statuses:
                return status
            if status in ("succeeded", "failed", "cancelled"):
                break
            time.sleep(0.2)
        raise AssertionError(f"{job_id} is {status}, not {' or '.join(statuses)}: {self.messages(job_id)}")

    def wait_for_step(self, job_id: str, step: int, timeout: float = 240) -> None:
        """Wait until the job has trained `step` steps. Raises AssertionError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")["version"] >= step:
                return
            self.wait(job_id, "validating_files", "queued", "running")
            time.sleep(0.1)
        raise AssertionError(f"{job_id} did not reach step {step}: {self.messages(job_id)}")

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """The job's newest events, oldest first, as the API returns them."""
        newest_first: list[dict[str, Any]] = self.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=100")["data"]
        return newest_first[::-1]

    def messages(self, job_id: str) -> list[str]:
        """The messages of `events`."""
        return [event["message"] for event in self.events(job_id)]

    def pid_of(self, job_id: str, worker: str) -> int:
        """Process id of the worker's newest process that became ready."""
        return dict(ready_processes(self.events(job_id)))[worker]

    def metrics(self, job_id: str, kind: str) -> list[dict[str, Any]]:
        """The job's measurements of one kind, oldest first."""
        entries = self.get(f"/v1/fine_tuning/jobs/{job_id}/metrics")["data"]
        return [entry["data"] for entry in entries if entry["kind"] == kind]
