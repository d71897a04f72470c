"""The observer: a client that polls a job over HTTP all the time and notes every violated guarantee.

    every 0.3 s ── ledger ──► versions never decrease · no token is older than the bound · the counts balance
                └─ events ──► process ids of the workers
                └─ job ─────► status: an ended job stays as it ended, and no job pauses unless a user pauses it

A gateway that does not answer is no violation: it may just have been killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx

from headrace_lab.services.worker_processes import ready_processes

PERIOD = 0.3
ENDED = ("succeeded", "failed", "cancelled")


class Observer:
    """Polls one job after the other, in its own thread."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._client = httpx.Client(timeout=5.0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll_loop, name="observer", daemon=True)
        self._job: str | None = None
        self._bound = 0
        self.version = -1
        """The job's policy version at the last poll; -1 before the first."""
        self.version_changes: list[float] = []
        """Monotonic times at which an increase of the version was seen."""
        self.status = ""
        self.ready: dict[int, str] = {}
        """Name of the worker by process id, from the job's events."""
        self.violations: list[str] = []
        self.unanswered_polls = 0
        """Polls at which at least one route did not answer."""
        self.polls = 0

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)
        self._client.close()

    def follow(self, job_id: str, bound: int) -> None:
        """Observe this job from now on; `bound` is its max_staleness."""
        self.version, self.status, self._bound, self._job = -1, "", bound, job_id

    @property
    def ended(self) -> bool:
        """Whether the job was seen to have ended."""
        return self.status in ENDED

    def max_pause(self, since: float) -> float:
        """The longest time in seconds, after `since`, between two increases of the version."""
        instants = [since, *(t for t in self.version_changes if t > since)]
        return max((b - a for a, b in pairwise(instants)), default=0.0)

    def get(self, route: str, limit: float = 120.0) -> Any:
        """The JSON answer of one of the job's routes, retried while the service does not answer.

        Raises `AssertionError` after `limit` seconds without an answer.
        """
        deadline = time.monotonic() + limit
        while True:
            answer = self._try_get(route)
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                raise AssertionError(f"{route} was not answered for {limit:.0f} s")
            time.sleep(PERIOD)

    def _try_get(self, route: str) -> Any | None:
        """One request; None if there is no answer, or status 503 (temporarily unavailable)."""
        try:
            response = self._client.get(f"{self._address()}/v1/fine_tuning/jobs/{self._job}{route}")
        except httpx.TransportError:
            return None
        if response.status_code == 503:
            return None
        response.raise_for_status()
        return response.json()

    def _poll_loop(self) -> None:
        while not self._stopping.wait(PERIOD):
            if self._job is not None:
                self._poll(self._job)

    def _poll(self, job: str) -> None:
        try:
            answers = [self._try_get(route) for route in ("", "/ledger", "/events?limit=100")]
        except httpx.HTTPStatusError as error:
            self._note(f"{error.request.url.path} answered {error.response.status_code}: {error.response.text[:300]}")
            return
        if job != self._job:  # `follow` was called meanwhile
            return
        self.polls += 1
        self.unanswered_polls += None in answers
        for answer, check in zip(answers, (self._check_status, self._check_ledger, self._read_events), strict=True):
            if answer is not None:
                check(answer)

    def _check_status(self, job: dict[str, Any]) -> None:
        status = job["status"]
        if self.ended and status != self.status:
            self._note(f"the job was {self.status} and is {status}")
        if status == "paused" != self.status:
            self._note(f"the job paused by itself: {job.get('paused_by')}")
        self.status = status

    def _check_ledger(self, ledger: dict[str, Any]) -> None:
        if ledger["version"] < self.version:
            self._note(f"version {ledger['version']} was seen after {self.version}")
        if ledger["largest_age"] > self._bound:
            self._note(f"a token of age {ledger['largest_age']} was trained, the bound is {self._bound}")
        if not ledger["balanced"]:
            self._note(f"the counts of the ledger do not balance: {ledger}")
        if ledger["version"] > self.version:
            self.version_changes.append(time.monotonic())
        self.version = ledger["version"]

    def _read_events(self, events: dict[str, Any]) -> None:
        self.ready |= {pid: worker for worker, pid in ready_processes(events["data"])}

    def _note(self, violation: str) -> None:
        if violation not in self.violations:
            self.violations.append(f"{self._job}: {violation}")
