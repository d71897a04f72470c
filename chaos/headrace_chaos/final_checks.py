"""Final checks of a job that has ended, and of the machine after the service has stopped."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from headrace_chaos.outside_observer import Observer
from headrace_chaos.processes import ProcessTracker, command_line

TERMINAL = {
    "trained",
    "dropped_stale",
    "filtered",
    "reward_failed",
    "generation_failed",
    "cancelled",
}
SHARED_MEMORY = Path("/dev/shm")
ENDING_SECONDS = 10.0
"""Processes that were told to end have this much time to do so."""


def of_job(observer: Observer, steps: int, batch_size: int) -> list[str]:
    """Guarantees that the observed job, which has ended, violated; empty if none."""
    job, ledger = observer.get(""), observer.get("/ledger")
    violations = []
    if job["status"] != "succeeded":
        violations.append(f"it ended as {job['status']}: {job.get('error')}")
    elif ledger["states"]["trained"] != steps * batch_size:
        violations.append(f"{ledger['states']['trained']} groups were trained, not {steps * batch_size}")
    if not ledger["balanced"]:
        violations.append(f"the counts of the ledger do not balance: {ledger}")
    reported = [entry["data"]["step"] for entry in observer.get("/metrics?kind=step&limit=10000")["data"]]
    if reported != sorted(set(reported)):
        violations.append(f"steps were reported as {reported}")
    violations += _of_groups(observer, ledger)
    return [f"{job['id']}: {violation}" for violation in violations]


def unreported_steps(observer: Observer) -> list[int]:
    """Trained steps of the observed job whose metrics were lost when the learner died before it recorded them."""
    reported = {entry["data"]["step"] for entry in observer.get("/metrics?kind=step&limit=10000")["data"]}
    return sorted(set(range(1, observer.get("/ledger")["version"] + 1)) - reported)


def _of_groups(observer: Observer, ledger: dict[str, Any]) -> list[str]:
    """Violations in the state histories of all groups that were ever admitted."""
    violations, final_states = [], Counter[str]()
    for group in range(ledger["admitted"]):
        states = [line["state"] for line in observer.get(f"/ledger/{group}")["history"]]
        last, trained = states[-1], states.count("trained")
        final_states[last] += 1
        if last not in TERMINAL:
            violations.append(f"group {group} was lost: it is {last}")
        if trained > 1 or (trained and last != "trained"):
            violations.append(f"group {group} was trained {trained} times and ended as {last}")
    if final_states != Counter({state: n for state, n in ledger["states"].items() if n}):
        violations.append(f"the histories end as {dict(final_states)}, the ledger counts {ledger['states']}")
    return violations


def of_machine(processes: ProcessTracker, jobs: list[str]) -> list[str]:
    """Processes, and shared memory of the ended `jobs`, that remain after the service was stopped; empty if none."""
    psutil.wait_procs(processes.left(), ENDING_SECONDS)
    left = [f"process {p.pid} is left: {command_line(p)[:200]}" for p in processes.left()]
    return left + [f"{path} is left" for path in _shared_memory(jobs)]


def remove_shared(jobs: list[str]) -> None:
    """Remove the jobs' shared memory: a job that the campaign gave up keeps it, so that it could be resumed."""
    for path in _shared_memory(jobs):
        shutil.rmtree(path)


def _shared_memory(jobs: list[str]) -> list[Path]:
    folders = [Path(folder) for folder, _, _ in os.walk(SHARED_MEMORY)]
    return [folder for folder in folders if folder.name in jobs]
