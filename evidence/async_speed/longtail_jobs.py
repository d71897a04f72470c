"""Runs jobs on `examples/longtail` through the service, to measure their speed.

    headrace serve ◄── one job after the other, without evaluation: rollout worker on one core, learner on the other

A job's speed is that of its steady state: from its first quarter of steps on to its last step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openai import OpenAI

from headrace_lab.paths import EXAMPLES
from headrace_lab.reports.job_report import Record, steady_shares
from headrace_lab.services.example_run import connect, fetch, follow, server

JOB_SECONDS = 600
SETTINGS: dict[str, Any] = {
    "batch_size": 32,
    "group_size": 8,
    "learning_rate": 1.5e-4,
    "max_tokens": 256,
    "max_context": 512,
    "max_running": 256,
}


def run_jobs(folder: Path, seed: int, bounds: list[int], steps: int) -> list[dict[str, Any]]:
    """Run one job for each bound, in order; returns their figures. Raises `SystemExit` if a job fails."""
    with server(folder) as address:
        client = connect(address)
        return [_run(client, address, seed, bound, steps) for bound in bounds]


def _run(client: OpenAI, address: str, seed: int, bound: int, steps: int) -> dict[str, Any]:
    train = client.files.create(file=EXAMPLES / "longtail" / "train.jsonl", purpose="fine-tune")
    settings = {**SETTINGS, "n_steps": steps, "max_staleness": bound, "checkpoint_interval": steps, "seed": seed}
    reward = {"type": "function", "name": "correct", "function": f"{EXAMPLES / 'adder' / 'reward.py'}:correct"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": reward, "hyperparameters": settings}}
    job = client.fine_tuning.jobs.create(model="headrace/tiny-longtail", training_file=train.id, method=method)
    follow(client, job.id, "longtail", JOB_SECONDS)
    return _figures(fetch(address, job.id))


def _figures(record: Record) -> dict[str, Any]:
    steps = record.of("step")
    first = len(steps) // 4
    measured = steps[first + 1 :]
    seconds = steps[-1]["time"] - steps[first]["time"]
    return {
        "max_staleness": record.hyperparameters["max_staleness"],
        "steps": len(measured),
        "seconds_a_step": seconds / len(measured),
        "tokens_per_second": sum(s["tokens"] for s in measured) / seconds,
        "completion_length": sum(s["completion_length"] for s in measured) / len(measured),
        "reward": [steps[0]["reward_mean"], steps[-1]["reward_mean"]],
        "masked_tokens": record.ledger["masked_tokens"],
        "largest_age": record.ledger["largest_age"],
        "busy": {s.worker: s.busy for s in steady_shares(record)},
        "stages": {stage: sum(s["seconds"][stage] for s in measured) / len(measured) for stage in steps[-1]["seconds"]},
    }
