"""The two sides of `run.py`, each as one function that takes a task and returns a `Run`.

    run_trl         trl_run.py, with the Python of TRL's environment, on all cores
    run_headrace    headrace serve and a job over REST; engine and learner share the cores

Time is measured from when the first step may begin, with models loaded, and includes writing checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_lab.paths import ADDER
from headrace_lab.services.example_run import connect, fetch, follow, server

HERE = Path(__file__).resolve().parent

GROUPS, GROUP_SIZE = 32, 8
LEARNING_RATE = 1.5e-4
MAX_STALENESS = 4
SAVE_EVERY = 2
"""Steps between checkpoints: the resolution of the time to the target."""
RUN_SECONDS = 900
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Task:
    name: str
    folder: Path
    max_tokens: int
    trl_steps: int
    headrace_steps: int
    target: float
    """Held-out greedy accuracy; the time to reach it is measured."""
    speed: float
    """Threshold: Headrace's samples/s divided by TRL's, at least."""
    time: float
    """Threshold: TRL's time to the target divided by Headrace's, at least."""
    micro_batch: int
    """Completions per forward pass of TRL."""
    engine: str


@dataclass
class Run:
    """What one side did in one round."""

    side: str
    seconds: float
    """From when the first step could begin to the end of the last."""
    samples: int
    start_seconds: float
    """Time before the first step: processes, imports, loading."""
    rewards: list[float]
    """Mean reward of each step's samples."""
    tokens: list[float]
    """Mean completion length of each step's samples."""
    checkpoints: list[tuple[int, float, str]]
    """(step, seconds, folder) of each."""
    accuracies: list[float] = field(default_factory=list)
    """Held-out greedy accuracy of each checkpoint."""
    target_seconds: float | None = None
    """Seconds of the first checkpoint that reaches the target; None if none does."""


def cores() -> int:
    return len(os.sched_getaffinity(0))


# ── TRL ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def environment(folder: Path, torch_index: str | None) -> Path:
    """The Python of TRL's environment, which is rebuilt if its list of packages has changed."""
    pins = HERE / "requirements.txt"
    stamp, made_of = folder / ".made", hashlib.sha256(pins.read_bytes() + TORCH.encode()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == made_of:
        return python
    print(f"against_trl: builds TRL's environment in {folder} (1.5 GB, some minutes)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    index = ["--index-url", torch_index] if torch_index else []
    subprocess.run([*install, *index, TORCH], check=True, timeout=1800)
    subprocess.run([*install, "--no-deps", "-r", str(pins)], check=True, timeout=1800)
    stamp.write_text(made_of)
    return python


def run_trl(python: Path, task: Task, folder: Path, seed: int) -> Run:
    """Run the task with TRL. Raises `CalledProcessError` or `TimeoutExpired` if it fails."""
    lines = folder / "trl.jsonl"
    options = {
        "model": task.folder / "model",
        "train": task.folder / "train.jsonl",
        "reward": ADDER / "reward.py",
        "out": lines,
        "checkpoints": folder / "checkpoints",
        "steps": task.trl_steps,
        "save-every": SAVE_EVERY,
        "groups": GROUPS,
        "group-size": GROUP_SIZE,
        "max-tokens": task.max_tokens,
        "threads": cores(),
        "seed": seed,
        "micro-batch": task.micro_batch,
        "learning-rate": LEARNING_RATE,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    threads = {"OMP_NUM_THREADS": str(cores()), "HF_HUB_OFFLINE": "1"}
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | threads
    with (folder / "trl.log").open("w") as log:
        command = [str(python), str(HERE / "trl_run.py"), *words]
        subprocess.run(command, check=True, timeout=RUN_SECONDS, env=environ, stdout=log, stderr=log)
    first, *steps = (json.loads(line) for line in lines.read_text().splitlines())
    return Run(
        side="trl",
        seconds=steps[-1]["seconds"],
        samples=steps[-1]["samples"],
        start_seconds=first["ready"],
        rewards=[step["reward"] for step in steps],
        tokens=[step["tokens"] for step in steps],
        checkpoints=[(s["step"], s["seconds"], s["checkpoint"]) for s in steps if s["checkpoint"]],
    )


# ── Headrace ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_headrace(task: Task, folder: Path, seed: int) -> Run:
    """Run the task as a Headrace job. Raises `SystemExit` if the job fails or does not end in time."""
    began = time.time()
    with server(folder) as address:
        client = connect(address)
        job = submit(client, task, seed)
        follow(client, job.id, "against_trl", RUN_SECONDS)
        record = fetch(address, job.id)
        saved = client.fine_tuning.jobs.checkpoints.list(job.id, limit=100).data
        names = {c.step_number: c.fine_tuned_model_checkpoint for c in saved}
        models = {step: client.models.retrieve(name).to_dict() for step, name in names.items()}
    steps = record.of("step")
    # a step's stages, including its wait for groups, add up to the time since the previous step or the start
    start: float = steps[0]["time"] - sum(steps[0]["seconds"].values())
    ended = {step["step"]: step["time"] - start for step in steps}
    return Run(
        side="headrace",
        seconds=steps[-1]["time"] - start,
        samples=sum(step["completions"] for step in steps),
        start_seconds=start - began,
        rewards=[step["reward_mean"] for step in steps],
        tokens=[step["completion_length"] for step in steps],
        checkpoints=[(step, ended[step], str(models[step]["path"])) for step in sorted(models)],
    )


def submit(client: Any, task: Task, seed: int) -> Any:
    """Create the job, without a validation file, so that its time includes no evaluation."""
    train = client.files.create(file=task.folder / "train.jsonl", purpose="fine-tune")
    settings = {
        "algorithm": "grpo",
        "n_steps": task.headrace_steps,
        "batch_size": GROUPS,
        "group_size": GROUP_SIZE,
        "learning_rate": LEARNING_RATE,
        "temperature": 1.0,
        "max_tokens": task.max_tokens,
        "max_context": task.max_tokens + 64,
        "max_running": GROUPS * GROUP_SIZE,
        "max_staleness": MAX_STALENESS,
        "engine": task.engine,
        "checkpoint_interval": SAVE_EVERY,
        "keep_checkpoints": max(2, task.headrace_steps // SAVE_EVERY),  # each is evaluated after the run
        "seed": seed,
    }
    grader = {"type": "function", "name": "correct", "function": f"{ADDER / 'reward.py'}:correct"}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": settings}}
    return client.fine_tuning.jobs.create(model=str(task.folder / "model"), training_file=train.id, method=method)
