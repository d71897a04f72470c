"""`make demo`: one RL job through the whole real system, on two cores, and a report of how it went.

    headrace serve (private Redis, local Ray, gateway) ◄── the official openai client, unmodified
        └─ tiny-adder ─► vLLM ─► Redis ─► learner ─► weights in flight ─► … ─► report

The last line is `demo: greedy accuracy 0.xx -> 0.yy in N s, max token age A of B`; N counts from when the workers are
ready to the last evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_lab.reports.job_report import Record, steady_shares, write_report
from headrace_lab.services.example_run import connect, fetch, follow, server

HERE = Path(__file__).resolve().parent
JOB_SECONDS = 1800


def main() -> int:
    options = arguments()
    folder = options.out or HERE.parents[1] / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    with server(folder) as address:
        print(f"demo: dashboard at {address}", flush=True)
        client = connect(address)
        job = submit(client, options)
        print(f"demo: this job at {address}/jobs/{job.id}", flush=True)
        follow(client, job.id, "demo", JOB_SECONDS)
        record = fetch(address, job.id)
    page = write_report(folder / "report", record)
    print(f"demo: report in {page}")
    return conclude(record)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--max-staleness", type=int, default=4)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="grpo")
    parser.add_argument("--reward", choices=("correct", "phrase"), default="correct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder of data and report (default: runs/demo-<time>)")
    return parser.parse_args()


def submit(client: OpenAI, options: argparse.Namespace) -> Any:
    """Upload both files and create the job, with the calls that any user of the API makes."""
    train = client.files.create(file=HERE / "train.jsonl", purpose="fine-tune")
    held_out = client.files.create(file=HERE / "validation.jsonl", purpose="fine-tune")
    settings = {
        "algorithm": options.algorithm,
        "n_steps": options.steps,
        "batch_size": 32,
        "group_size": 8,
        "learning_rate": 1.5e-4,
        "temperature": 1.0,
        "max_tokens": 64,
        "max_context": 128,
        "max_running": 128,
        "max_staleness": options.max_staleness,
        "engine": options.engine,
        "eval_interval": 10,
        "seed": options.seed,
    }
    reward = {"type": "function", "name": options.reward, "function": f"{HERE / 'reward.py'}:{options.reward}"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": reward, "hyperparameters": settings}}
    return client.fine_tuning.jobs.create(
        model="headrace/tiny-adder", training_file=train.id, validation_file=held_out.id, method=method
    )


def conclude(record: Record) -> int:
    """Print the last lines; returns 0 if the ledger balances and the staleness bound was kept."""
    steps, evaluations = record.of("step"), record.of("evaluation")
    for share in steady_shares(record):
        print(f"demo: {share.worker} busy {share.busy:.0%} of {share.seconds:.0f} s in steady state")
    bound, oldest = record.ledger["largest_age_bound"], record.ledger["largest_age"]
    first, last = evaluations[0], evaluations[-1]
    seconds = max(last["time"], steps[-1]["time"]) - first["time"]
    print(
        f"demo: greedy accuracy {accuracy(first):.2f} -> {accuracy(last):.2f} in {seconds:.0f} s, "
        f"max token age {oldest} of {bound}"
    )
    return 0 if record.ledger["balanced"] and oldest <= bound else 1


def accuracy(evaluation: dict[str, Any]) -> float:
    """Fraction of correct answers: the reward, or with the phrase reward its component `correct`."""
    return float(evaluation["components"].get("correct", evaluation["reward_mean"]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
