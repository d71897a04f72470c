"""Cost of the learner's snapshots, compared with a synchronous save; and time a job needs to recover from a kill.

Stall: for a model of SmolLM2-135M's shape with AdamW's state (1.6 GB together), in alternating rounds,

    save       seconds of `checkpoint.save` of that state to disk, during which no step can run
    stall      seconds that a step waits for a snapshot: to begin it, and before the update, for the end of the copy
    slower     how many seconds longer a step takes while a snapshot is copied, checksummed and sealed: the copy uses
               memory bandwidth, and on a busy machine also the core

Recovery: a job of the shipped adder on the whole service (gateway, Ray, vLLM), whose learner and later rollout worker
are killed with SIGKILL. Seconds from the kill on, by part:

    noticed    until the controller reports the failure
    delay      until it starts another process (a delay that grows with each restart)
    process    until that process runs our code: Ray's worker, Python, imports
    model      until it has loaded its model (rollout worker: and started its engine and its reward)
    state      learner: until it has restored the newest snapshot or checkpoint
    replay     learner: until it has trained again the later steps that were settled
    ready      until the controller knows that it is ready
    first      until the next step is settled, or the first token sampled (reported by a heartbeat every two seconds)

    python -m benchmarks.recovery [--seed N] [--out FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx

from headrace_lab.paths import ADDER
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.example_run import connect, server
from headrace_lab.training.tiny_models import make_model, smollm2_config

# These limits were fixed before the first run.
STALL_SHARE = 0.1
"""PASS: a step stalls for a snapshot at most this fraction of a synchronous save of the same state."""
LEARNER_SECONDS = 60.0
"""PASS: at most this from the kill of a learner to the next settled step."""
ROLLOUT_SECONDS = 120.0
"""PASS: at most this from the kill of a rollout worker to its first new token. Unlike a learner, it starts an
engine."""

COMPLETIONS = 4
"""Completions of the step during which snapshots are copied: a short step, with little time to hide the copy in."""
POLL_SECONDS = 0.05
LIMIT_SECONDS = 400.0
"""Limit of every wait in this benchmark."""
SETTINGS: dict[str, Any] = {
    "n_steps": 100_000,
    "batch_size": 4,
    "group_size": 4,
    "max_tokens": 48,
    "max_context": 128,
    "max_running": 16,
    "kv_cache_gib": 0.1,
    "checkpoint_interval": 20,
}


# ── the stall ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_stall(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from benchmarks.learner import GROUP_SIZE, groups, timed
    from headrace_core.config.hyperparameters import Hyperparameters
    from headrace_learner.algorithms.presets import algorithm
    from headrace_learner.checkpoints import checkpoint
    from headrace_learner.checkpoints.memory_snapshot import Snapshots
    from headrace_learner.distributed.torch_thread import keep_freed_memory
    from headrace_learner.models.policy import Policy
    from headrace_learner.training.trainer import Trainer

    keep_freed_memory()
    model = make_model(smollm2_config(), options.seed, folder / "model")
    settings = Hyperparameters(algorithm="grpo", learning_rate=1e-6)
    policy = Policy(model, settings)
    trainer = Trainer(policy, algorithm("grpo"), settings)
    (group,) = groups(GROUP_SIZE, policy.model.config.vocab_size, options.seed)
    batch = [replace(group, completions=group.completions[:COMPLETIONS])]
    memory = Path(tempfile.mkdtemp(prefix="headrace-recovery-", dir="/dev/shm"))
    snapshots = Snapshots(trainer, memory)
    rounds: list[dict[str, float]] = []
    try:
        trainer.step(batch, 0)
        for version in (1, 2):  # warm-up: reserves and maps the memory of both generations
            timed(partial(snapshots.begin, version))
            timed(lambda: trainer.step(batch, 0))
        for number in range(options.rounds):
            snapshots.finish()
            plain = timed(lambda: trainer.step(batch, 0))
            before = snapshots.stalled
            begun = timed(partial(snapshots.begin, number + 3))
            beside = timed(lambda: trainer.step(batch, 0))
            stall = begun + snapshots.stalled - before
            snapshots.finish()
            saved = timed(partial(checkpoint.save, trainer, folder, number))
            rounds.append({"plain": plain, "beside": beside, "stall": stall, "save": saved})
            print(f"round {number + 1}: {rounds[-1]}", flush=True)
        state_bytes = sum(file.stat().st_size for file in memory.iterdir()) // 2
    finally:
        snapshots.close()
        shutil.rmtree(memory)
    stall, save = (statistics.median(r[kind] for r in rounds) for kind in ("stall", "save"))
    slower = statistics.median(r["beside"] - r["plain"] for r in rounds)
    return {
        "state_bytes": state_bytes,
        "rounds": rounds,
        "stall_seconds": stall,
        "save_seconds": save,
        "stall_share": stall / save,
        "step_seconds": statistics.median(r["plain"] for r in rounds),
        "slower_seconds": slower,
        "slower_share_of_save": slower / save,
    }


# ── recovery ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class JobPoller:
    """Polls one job's routes, and waits for its events."""

    def __init__(self, address: str, job_id: str) -> None:
        self._http = httpx.Client(base_url=f"{address}/v1/fine_tuning/jobs/{job_id}", timeout=30)
        self._seen: set[str] = set()

    def close(self) -> None:
        self._http.close()

    def get(self, route: str) -> Any:
        return self._http.get(route).raise_for_status().json()

    def wait_for(self, what: str, poll: Callable[[], Any]) -> tuple[Any, float]:
        """Poll until the result is true; returns (result, monotonic time). Raises `TimeoutError`."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            if result := poll():
                return result, time.monotonic()
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"{what} did not come within {LIMIT_SECONDS:.0f} s")

    def wait_for_event(self, beginning: str) -> tuple[dict[str, Any], float]:
        """Wait for an event that was not returned before and whose message starts with `beginning`."""

        def poll() -> dict[str, Any] | None:
            for event in reversed(self.get("/events?limit=50")["data"]):
                if event["id"] not in self._seen and event["message"].startswith(beginning):
                    self._seen.add(event["id"])
                    return dict(event)
            return None

        return self.wait_for(f"an event {beginning!r}", poll)

    def version(self) -> int:
        return int(self.get("/ledger")["version"])


def measure_recovery(seed: int, folder: Path) -> dict[str, Any]:
    with server(folder) as address, connect(address) as client:
        rows = client.files.create(file=ADDER / "train.jsonl", purpose="fine-tune").id
        grader = {"type": "function", "name": "correct", "function": f"{ADDER / 'reward.py'}:correct"}
        method: Any = {
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "hyperparameters": SETTINGS | {"seed": seed}},
        }
        job = client.fine_tuning.jobs.create(model="headrace/tiny-adder", training_file=rows, method=method).id
        poller = JobPoller(address, job)
        try:
            pids = {worker: ready(poller, worker)[0]["pid"] for worker in ("learner", "rollout-0")}
            poller.wait_for("the fifth step", lambda: poller.version() >= 5)
            learner = kill(poller, "learner", pids["learner"], step_settled)
            version = poller.version()
            poller.wait_for("three steps more", lambda: poller.version() >= version + 3)
            rollout = kill(poller, "rollout-0", pids["rollout-0"], token_sampled)
        finally:
            client.fine_tuning.jobs.cancel(job)
            poller.close()
    return {"learner": learner, "rollout": rollout}


def ready(poller: JobPoller, worker: str) -> tuple[dict[str, Any], float]:
    """Wait until the worker is ready; returns (data of the event, monotonic time)."""
    event, at = poller.wait_for_event(f"{worker} is ready")
    return event["data"], at


def kill(poller: JobPoller, worker: str, pid: int, first: Callable[[JobPoller], Callable[[], Any]]) -> dict[str, Any]:
    """Kill the worker and wait until its successor works; returns seconds by part and in total."""
    works_again = first(poller)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    failed, noticed = poller.wait_for_event(f"{worker} failed")
    facts, up = ready(poller, worker)
    _, done = poller.wait_for(f"{worker}'s first", works_again)
    delay, inside = failed["data"]["delay"], facts["seconds"]
    state, replay = facts.get("state_seconds", 0.0), facts.get("replay_seconds", 0.0)
    parts = {
        "noticed": noticed - killed,
        "delay": delay,
        "process": up - noticed - delay - inside,
        "model": facts.get("model_seconds", inside),
        "state": state,
        "replay": replay,
        "first": done - up,
    }
    return {"seconds": done - killed, "parts": {k: round(v, 2) for k, v in parts.items()}, "from": facts.get("from")}


def step_settled(poller: JobPoller) -> Callable[[], Any]:
    """A function that tells whether the successor has settled a step; the next step may still be the dead learner's."""
    before = poller.version() + 1
    return lambda: poller.version() > before


def token_sampled(poller: JobPoller) -> Callable[[], Any]:
    """A function that tells whether the successor, whose uptime and tokens count from 0, has sampled a token."""

    def heartbeat() -> dict[str, Any]:
        return next(dict(worker) for worker in poller.get("/workers")["data"] if worker["id"] == "rollout-0")

    before = heartbeat()

    def sampled() -> bool:
        now = heartbeat()
        return bool(now["uptime"] < before["uptime"] and now["tokens"])

    return sampled


def main() -> None:
    parser = arguments("recovery", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-recovery-"))
    try:
        recovery = measure_recovery(options.seed, folder / "service")
        print(recovery, flush=True)
        stall = measure_stall(options, folder)
    finally:
        shutil.rmtree(folder)
    learner, rollout = recovery["learner"]["seconds"], recovery["rollout"]["seconds"]
    passed = stall["stall_share"] <= STALL_SHARE and learner <= LEARNER_SECONDS and rollout <= ROLLOUT_SECONDS
    figures = (
        f"stall {stall['stall_seconds'] * 1e3:.0f} ms = {stall['stall_share']:.4f} x save, "
        f"{stall['save_seconds']:.1f} s (limit {STALL_SHARE:g} x), the step beside {stall['slower_seconds']:+.2f} s; "
        f"kill to next step {learner:.1f} s (limit {LEARNER_SECONDS:.0f} s), "
        f"to next token {rollout:.1f} s (limit {ROLLOUT_SECONDS:.0f} s)"
    )
    report("recovery", passed, figures, {"stall": stall, "recovery": recovery}, options)


if __name__ == "__main__":
    main()
