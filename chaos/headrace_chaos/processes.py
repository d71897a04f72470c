"""The service's own processes, found by walking down from those that were started here, never by name over the machine.

    headrace serve ─┬─► valkey-server                          redis
                    ├─► headrace_gateway.limited_processes.fork_server           not struck: no job that was taken in
                    needs it
                    └─► raylet (or under `ray start`)          node
                          ├─► ray::JobControllerActor        controller
                          └─► ray::WorkerActor                 learner, rank, rollout: whose pid the job's events name;
                                │                              starting: whose pid they do not name yet
                                ├─► VLLM::EngineCore           engine
                                └─► headrace_rewards.sandbox   reward

Invariant: every process that was ever seen below a root is remembered with the time it began, so that one that
outlives its parents is found again, and a pid that was given to another program is not taken for it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator

import psutil

MARK = "CHAOS_CAMPAIGN"
"""Environment variable that everything below a root inherits: finds what was orphaned between two looks."""

_TITLES = {
    "ray::JobControllerActor": "controller",
    "EngineCore": "engine",
    "headrace_rewards.sandbox": "reward",
}


class Family:
    """All processes of one campaign."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self._seen: dict[tuple[int, float], psutil.Process] = {}

    def look(self, roots: Iterable[int]) -> list[psutil.Process]:
        """Everything that runs below the processes `roots`, these included."""
        found = [process for root in roots for process in _below(root)]
        self._seen |= {(p.pid, p.create_time()): p for p in found}
        return [p for p in found if _runs(p)]

    def left(self) -> list[psutil.Process]:
        """What still runs of all that was ever seen, or carries the mark."""
        marked = {(p.pid, p.create_time()): p for p in psutil.process_iter() if p.pid != os.getpid() and self._ours(p)}
        return [p for p in (self._seen | marked).values() if _runs(p)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:  # it ended meanwhile, or is another user's
            return False


def kind_of(process: psutil.Process, ready: dict[int, str]) -> str | None:
    """What it is; None for what is not struck. `ready`: worker by pid, as the jobs' events named them."""
    title = described(process)
    if "ray::WorkerActor" in title:
        return ready.get(process.pid, "starting").split("-")[0]
    if title.split(" ")[0].endswith(("redis-server", "valkey-server")):
        return "redis"
    if title.split(" ")[0].endswith("/raylet"):
        return "node"
    return next((kind for sign, kind in _TITLES.items() if sign in title), None)


def described(process: psutil.Process) -> str:
    """Its command line, or title; empty once it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _below(root: int) -> Iterator[psutil.Process]:
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
