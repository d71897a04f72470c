"""Finds the service's processes as descendants of those that the campaign started, never by name machine-wide.

    process                                                    kind
    headrace serve                                             gateway
      ├─► valkey-server                                        redis
      ├─► headrace_gateway.limited_processes.fork_server       none: running jobs do not need it
      └─► raylet (or under `ray start`)                        node
            ├─► ray::JobControllerActor                        controller
            └─► ray::WorkerActor                               learner, rank, rollout: its pid is in the job's events;
                  │                                            starting: its pid is not in the events yet
                  ├─► VLLM::EngineCore                         engine
                  └─► headrace_rewards.sandbox                 reward

Invariant: every process that was ever seen below a root is remembered with its start time, so that it is found even if
its parents have ended, and a later process with the same pid is not mistaken for it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator

import psutil

MARK = "CHAOS_CAMPAIGN"
"""Environment variable that all descendants inherit: finds processes that were orphaned before they were seen."""

_TITLES = {
    "ray::JobControllerActor": "controller",
    "EngineCore": "engine",
    "headrace_rewards.sandbox": "reward",
}


class ProcessTracker:
    """Remembers all processes of one campaign."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self._seen: dict[tuple[int, float], psutil.Process] = {}

    def running(self, roots: Iterable[int]) -> list[psutil.Process]:
        """The running processes among `roots` (pids) and their descendants; all are remembered."""
        tree = [process for root in roots for process in _with_descendants(root)]
        self._seen |= {(p.pid, p.create_time()): p for p in tree}
        return [p for p in tree if _runs(p)]

    def left(self) -> list[psutil.Process]:
        """All processes that still run and were ever seen, or carry this campaign's mark in their environment."""
        others = (p for p in psutil.process_iter() if p.pid != os.getpid())
        marked = {(p.pid, p.create_time()): p for p in others if self._has_mark(p)}
        return [p for p in (self._seen | marked).values() if _runs(p)]

    def _has_mark(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:  # it has ended, or belongs to another user
            return False


def kind_of(process: psutil.Process, ready: dict[int, str]) -> str | None:
    """The kind of the process; None if it is never struck. `ready`: worker names by pid, from the jobs' events."""
    title = command_line(process)
    if "ray::WorkerActor" in title:
        return ready.get(process.pid, "starting").split("-")[0]
    if title.split(" ")[0].endswith(("redis-server", "valkey-server")):
        return "redis"
    if title.split(" ")[0].endswith("/raylet"):
        return "node"
    return next((kind for sign, kind in _TITLES.items() if sign in title), None)


def command_line(process: psutil.Process) -> str:
    """Command line, or the title that the process has set; empty if it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _with_descendants(root: int) -> Iterator[psutil.Process]:
    try:
        process = psutil.Process(root)
        yield from (process, *process.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
