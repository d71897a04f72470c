"""The outsider: reads a job over HTTP all the time, and notes every promise that it sees broken.

    every 0.3 s ── ledger ──► versions never run backwards · no token was older than the bound · the books balance
                └─ events ──► which pid is which worker's
                └─ job ─────► its status; one that ended stays as it ended, and none pauses by itself

A gateway that does not answer is no broken promise: it may just have been killed.
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


class Watcher:
    """Follows one job after the other, in a thread of its own."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._client = httpx.Client(timeout=5.0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)
        self._job: str | None = None
        self._bound = 0
        self.version = -1
        self.moved: list[float] = []
        """When the version was seen to have moved, by the monotonic clock."""
        self.status = ""
        self.ready: dict[int, str] = {}
        self.broken: list[str] = []
        self.unanswered = 0
        self.looks = 0

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)
        self._client.close()

    def follow(self, job_id: str, bound: int) -> None:
        """From now on this job, whose max_staleness is `bound`."""
        self.version, self.status, self._bound, self._job = -1, "", bound, job_id

    @property
    def ended(self) -> bool:
        """Whether the job was seen to have ended."""
        return self.status in ENDED

    def stood_still(self, since: float) -> float:
        """The longest time between two settled steps, in seconds, that began or ended after `since`."""
        instants = [since, *(t for t in self.moved if t > since)]
        return max((b - a for a, b in pairwise(instants)), default=0.0)

    def answer(self, route: str, limit: float = 120.0) -> Any:
        """The JSON of one of the job's routes. Raises `AssertionError` where the service does not answer for `limit`
        seconds."""
        deadline = time.monotonic() + limit
        while True:
            found = self._ask(route)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{route} was not answered for {limit:.0f} s")
            time.sleep(PERIOD)

    def _ask(self, route: str) -> Any | None:
        """None where nobody answers, or the service says that it cannot at present."""
        try:
            answered = self._client.get(f"{self._address()}/v1/fine_tuning/jobs/{self._job}{route}")
        except httpx.TransportError:
            return None
        if answered.status_code == 503:
            return None
        answered.raise_for_status()
        return answered.json()

    def _work(self) -> None:
        while not self._stopping.wait(PERIOD):
            if self._job is not None:
                self._look(self._job)

    def _look(self, job: str) -> None:
        try:
            seen = [self._ask(route) for route in ("", "/ledger", "/events?limit=100")]
        except httpx.HTTPStatusError as error:
            self._note(f"{error.request.url.path} answered {error.response.status_code}: {error.response.text[:300]}")
            return
        if job != self._job:  # another one is followed since
            return
        self.looks += 1
        self.unanswered += None in seen
        for found, judge in zip(seen, (self._judge_status, self._judge_ledger, self._read_events), strict=True):
            if found is not None:
                judge(found)

    def _judge_status(self, job: dict[str, Any]) -> None:
        status = job["status"]
        if self.ended and status != self.status:
            self._note(f"the job was {self.status} and is {status}")
        if status == "paused" != self.status:
            self._note(f"the job paused by itself: {job.get('paused_by')}")
        self.status = status

    def _judge_ledger(self, ledger: dict[str, Any]) -> None:
        if ledger["version"] < self.version:
            self._note(f"version {ledger['version']} was seen after {self.version}")
        if ledger["largest_age"] > self._bound:
            self._note(f"a token of age {ledger['largest_age']} was trained, the bound is {self._bound}")
        if not ledger["balanced"]:
            self._note(f"the books do not balance: {ledger}")
        if ledger["version"] > self.version:
            self.moved.append(time.monotonic())
        self.version = ledger["version"]

    def _read_events(self, events: dict[str, Any]) -> None:
        self.ready |= {pid: worker for worker, pid in ready_processes(events["data"])}

    def _note(self, promise: str) -> None:
        if promise not in self.broken:
            self.broken.append(f"{self._job}: {promise}")
