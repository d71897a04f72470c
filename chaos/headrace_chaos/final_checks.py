"""What must hold of a job that has ended, and of the machine after the service has."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from headrace_chaos.outside_observer import Watcher
from headrace_chaos.processes import Family, described

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
"""What was told to end may still be on its way out."""


def of_job(watcher: Watcher, steps: int, batch_size: int) -> list[str]:
    """Promises that the watcher's job, which has ended, broke; empty where none."""
    job, ledger = watcher.answer(""), watcher.answer("/ledger")
    broken = []
    if job["status"] != "succeeded":
        broken.append(f"it ended as {job['status']}: {job.get('error')}")
    elif ledger["states"]["trained"] != steps * batch_size:
        broken.append(f"{ledger['states']['trained']} groups were trained, not {steps * batch_size}")
    if not ledger["balanced"]:
        broken.append(f"the books do not balance: {ledger}")
    measured = watcher.answer("/metrics?kind=step&limit=10000")["data"]
    told = [entry["data"]["step"] for entry in measured]
    if told != sorted(set(told)):
        broken.append(f"steps were told as {told}")
    broken += _of_groups(watcher, ledger)
    return [f"{job['id']}: {promise}" for promise in broken]


def untold(watcher: Watcher) -> list[int]:
    """Steps of the watcher's job that were trained, but whose measurement died with the learner that had made it."""
    told = {entry["data"]["step"] for entry in watcher.answer("/metrics?kind=step&limit=10000")["data"]}
    return sorted(set(range(1, watcher.answer("/ledger")["version"] + 1)) - told)


def _of_groups(watcher: Watcher, ledger: dict[str, Any]) -> list[str]:
    """By the history of every group that was ever admitted."""
    broken, ended = [], Counter[str]()
    for group in range(ledger["admitted"]):
        states = [line["state"] for line in watcher.answer(f"/ledger/{group}")["history"]]
        last, trained = states[-1], states.count("trained")
        ended[last] += 1
        if last not in TERMINAL:
            broken.append(f"group {group} was lost: it is {last}")
        if trained > 1 or (trained and last != "trained"):
            broken.append(f"group {group} was trained {trained} times and ended as {last}")
    if ended != Counter({state: n for state, n in ledger["states"].items() if n}):
        broken.append(f"the histories end as {dict(ended)}, the books say {ledger['states']}")
    return broken


def of_machine(family: Family, jobs: list[str]) -> list[str]:
    """What is left of `jobs`, which have ended, once the service was stopped; empty where nothing is."""
    psutil.wait_procs(family.left(), ENDING_SECONDS)
    left = [f"process {p.pid} is left: {described(p)[:200]}" for p in family.left()]
    return left + [f"{path} is left" for path in _shared(jobs)]


def remove_shared(jobs: list[str]) -> None:
    """What a job that the campaign gave up keeps, so that it could go on."""
    for path in _shared(jobs):
        shutil.rmtree(path)


def _shared(jobs: list[str]) -> list[Path]:
    folders = [Path(found) for found, _, _ in os.walk(SHARED_MEMORY)]
    return [folder for folder in folders if folder.name in jobs]
