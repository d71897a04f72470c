"""What a snapshot of the learner costs its step, against a synchronous save; and what a kill costs a job, by part.

Stall: of a model of SmolLM2-135M's shape with AdamW's state (1.6 GB together), in alternating rounds,

    save       seconds of `checkpoint.save` of that state to the disk, during which no step can run
    stall      seconds that a step waits for a snapshot: to begin it, and before the update for what is not copied yet
    slower     seconds by which a step beside which a snapshot is copied, summed and sealed is longer than one without:
               the copy takes memory bandwidth, and on a busy machine also the core

Recovery: a job of the shipped adder on the whole service (gateway, Ray, vLLM), whose learner is ended by SIGKILL, and
later its rollout worker. Seconds from the kill on, by part:

    noticed    until the controller says so
    delay      until it starts another process (it waits a little longer with each restart)
    process    until that runs our code: Ray's worker, Python, imports
    model      until it has loaded its model (a rollout worker: and started its engine and its reward)
    state      learner: until it has the newest state that is kept
    replay     learner: until it has trained again the steps that this state does not hold
    ready      until the controller has heard of it
    first      until the next step is settled, or the first token sampled (told within the two seconds of a heartbeat)

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

# Written before the first run.
STALL_SHARE = 0.1
"""PASS: a step's stall by a snapshot, at most this share of a synchronous save of the same state."""
LEARNER_SECONDS = 60.0
"""PASS: from the kill of a learner to the next settled step, …"""
ROLLOUT_SECONDS = 120.0
"""… and from that of a rollout worker to the first new token. Both start Python, torch and a model on what cores there
are, the latter an engine, too."""

COMPLETIONS = 4
"""Of the step beside which snapshots are copied: a short one, which leaves little to hide the copy behind."""
LOOK_SECONDS = 0.05
LIMIT_SECONDS = 400.0
"""Every wait here."""
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
        for version in (1, 2):  # both generations' memory is there, and mapped
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


class Seen:
    """A job's events, each with the moment at which it was seen first."""

    def __init__(self, address: str, job_id: str) -> None:
        self._http = httpx.Client(base_url=f"{address}/v1/fine_tuning/jobs/{job_id}", timeout=30)
        self._seen: set[str] = set()

    def close(self) -> None:
        self._http.close()

    def get(self, route: str) -> Any:
        return self._http.get(route).raise_for_status().json()

    def await_(self, what: str, look: Callable[[], Any]) -> tuple[Any, float]:
        """What `look` finds, once that is true, and when. Raises `TimeoutError`."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            if found := look():
                return found, time.monotonic()
            time.sleep(LOOK_SECONDS)
        raise TimeoutError(f"{what} did not come within {LIMIT_SECONDS:.0f} s")

    def await_event(self, beginning: str) -> tuple[dict[str, Any], float]:
        """One that was not looked at before, whose message begins so."""

        def look() -> dict[str, Any] | None:
            for event in reversed(self.get("/events?limit=50")["data"]):
                if event["id"] not in self._seen and event["message"].startswith(beginning):
                    self._seen.add(event["id"])
                    return dict(event)
            return None

        return self.await_(f"an event {beginning!r}", look)

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
        seen = Seen(address, job)
        try:
            pids = {who: ready(seen, who)[0]["pid"] for who in ("learner", "rollout-0")}
            seen.await_("the fifth step", lambda: seen.version() >= 5)
            learner = kill(seen, "learner", pids["learner"], step_settled)
            version = seen.version()
            seen.await_("three steps more", lambda: seen.version() >= version + 3)
            rollout = kill(seen, "rollout-0", pids["rollout-0"], token_sampled)
        finally:
            client.fine_tuning.jobs.cancel(job)
            seen.close()
    return {"learner": learner, "rollout": rollout}


def ready(seen: Seen, who: str) -> tuple[dict[str, Any], float]:
    event, at = seen.await_event(f"{who} is ready")
    return event["data"], at


def kill(seen: Seen, who: str, pid: int, first: Callable[[Seen], Callable[[], Any]]) -> dict[str, Any]:
    """Seconds by part, and in all."""
    came = first(seen)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    failed, noticed = seen.await_event(f"{who} failed")
    facts, up = ready(seen, who)
    _, done = seen.await_(f"{who}'s first", came)
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


def step_settled(seen: Seen) -> Callable[[], Any]:
    """Later than those that were under way when the learner was killed: a dead one settles nothing."""
    before = seen.version() + 1
    return lambda: seen.version() > before


def token_sampled(seen: Seen) -> Callable[[], Any]:
    """By the successor, which counts from 0."""

    def worker() -> dict[str, Any]:
        return next(dict(each) for each in seen.get("/workers")["data"] if each["id"] == "rollout-0")

    before = worker()

    def look() -> bool:
        now = worker()
        return bool(now["uptime"] < before["uptime"] and now["tokens"])

    return look


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
