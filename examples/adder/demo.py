"""`make demo`: one RL job through the whole real system, on two cores, and a report of how it went.

    headrace serve (private Redis, local Ray, gateway) ◄── the official openai client, unmodified
        └─ tiny-adder ─► vLLM ─► Redis ─► learner ─► weights in flight ─► … ─► report

The last line is `demo: greedy accuracy 0.xx -> 0.yy in N s, max token age A of B`; N counts from when the workers are
ready to the last evaluation.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from headrace_gateway.report import Record, steady_shares, write_report

HERE = Path(__file__).resolve().parent
START_SECONDS = 120
JOB_SECONDS = 1800


def main() -> int:
    options = arguments()
    folder = options.out or HERE.parents[1] / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    with server(folder) as address:
        print(f"demo: dashboard at {address}", flush=True)
        client = OpenAI(base_url=f"{address}/v1", api_key="not-needed-on-loopback", max_retries=2)
        job = submit(client, options)
        print(f"demo: this job at {address}/jobs/{job.id}", flush=True)
        follow(client, job.id)
        record = fetch(address, job.id)
    page = write_report(folder / "report", record)
    print(f"demo: report in {page}")
    return conclude(record)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--max-staleness", type=int, default=4)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--reward", choices=("correct", "phrase"), default="correct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder of data and report (default: runs/demo-<time>)")
    return parser.parse_args()


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """`headrace serve` on a free port; yields its address, and ends it with Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "headrace_gateway", "serve", "--port", "0", "--data-dir", str(folder / "data")]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        try:
            yield address_of(process, folder / "server.log")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=START_SECONDS)


def address_of(process: subprocess.Popen[str], log: Path) -> str:
    """The server says it on its standard output, once all its parts are up."""
    assert process.stdout is not None
    for line in process.stdout:
        words = [word for word in line.split() if word.startswith("http://")]
        if words:
            return words[0].rstrip("/")
    raise SystemExit(f"demo: the server ended before it was up:\n{log.read_text()[-2000:]}")


def submit(client: OpenAI, options: argparse.Namespace) -> Any:
    """Both files and the job, by the calls any user of the API makes."""
    train = client.files.create(file=HERE / "train.jsonl", purpose="fine-tune")
    held_out = client.files.create(file=HERE / "validation.jsonl", purpose="fine-tune")
    settings = {
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


def follow(client: OpenAI, job_id: str) -> None:
    """Print what the job says until it ends. Raises SystemExit for a job that did not succeed."""
    seen: set[str] = set()
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        status = client.fine_tuning.jobs.retrieve(job_id).status
        events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
        for event in reversed(events):
            if event.id not in seen:
                seen.add(event.id)
                print(f"  {time.strftime('%H:%M:%S', time.localtime(event.created_at))}  {event.message}", flush=True)
        if status in ("succeeded", "failed", "cancelled"):
            if status != "succeeded":
                raise SystemExit(f"demo: the job {status}")
            return
        time.sleep(0.5)
    raise SystemExit(f"demo: the job did not end within {JOB_SECONDS} s")


def fetch(address: str, job_id: str) -> Record:
    """What the job left, for the report."""
    base = f"{address}/v1/fine_tuning/jobs/{job_id}"
    with httpx.Client(timeout=60) as http:
        job, ledger, metrics = (
            http.get(base + route).raise_for_status().json() for route in ("", "/ledger", "/metrics")
        )
    return Record(job, ledger, metrics["data"])


def conclude(record: Record) -> int:
    """The last lines; 0 where the ledger balances and held its bound."""
    steps, evaluations = record.of("step"), record.of("evaluation")
    for share in steady_shares(record):
        print(f"demo: {share.worker} busy {share.busy:.0%} of {share.seconds:.0f} s in steady state")
    bound, oldest = record.hyperparameters["max_staleness"], record.ledger["largest_age"]
    first, last = evaluations[0], evaluations[-1]
    seconds = max(last["time"], steps[-1]["time"]) - first["time"]
    print(
        f"demo: greedy accuracy {accuracy(first):.2f} -> {accuracy(last):.2f} in {seconds:.0f} s, "
        f"max token age {oldest} of {bound}"
    )
    return 0 if record.ledger["balanced"] and oldest <= bound else 1


def accuracy(evaluation: dict[str, Any]) -> float:
    """Share of correct answers: the reward itself, or what the phrase reward only watches."""
    return float(evaluation["components"].get("correct", evaluation["reward_mean"]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
