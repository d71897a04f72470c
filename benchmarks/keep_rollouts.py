"""How much time the learner spends on storing completions for later reading, relative to a training step.

A real learner on a real Redis trains headrace/tiny-adder with 32 groups of 8 completions per step, as in the example
job, and stores the default number of groups. The groups are synthetic: random tokens, with lengths like the adder's.

    on the path   time that a step waits: until the write of the previous step is done
    in all        that and the write itself (packing, round trip to Redis), which runs concurrently with the next step

Both are compared with the seconds of a step without its wait for groups.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access.client import connect
from headrace_core.types.job import Job
from headrace_core.types.trajectory import Group, sampled_completion
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.paths import ADDER
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.jobs import worker_config
from headrace_learner.rollout_recorder import RolloutRecorder
from headrace_learner.worker import LearnerWorker

MAX_SHARE = 0.01
"""PASS: storing takes in all at most this fraction of a step. Fixed before the first run."""

MODEL = ADDER / "model"
JOB, STEPS, WARM_UP = "ftjob-kept", 14, 2
VOCAB, PROMPT, MIN_LENGTH, MAX_LENGTH = 300, 14, 16, 40
SETTINGS: dict[str, Any] = {
    "batch_size": 32,
    "group_size": 8,
    "n_steps": STEPS,
    "learning_rate": 1.5e-4,
    "max_tokens": 64,
    "max_mismatch": 1e9,  # no engine sampled these groups
}


class RecorderTimes:
    """Seconds of every call of the recorder's `record` and `_write`, which are wrapped to measure them."""

    def __init__(self) -> None:
        self.path = list[float]()
        self.write = list[float]()
        record, write = RolloutRecorder.record, RolloutRecorder._write

        async def timed_record(recorder: RolloutRecorder, *args: Any) -> None:
            began = time.perf_counter()
            await record(recorder, *args)
            self.path.append(time.perf_counter() - began)

        async def timed_write(recorder: RolloutRecorder, *args: Any) -> None:
            began = time.perf_counter()
            await write(recorder, *args)
            self.write.append(time.perf_counter() - began)

        RolloutRecorder.record, RolloutRecorder._write = timed_record, timed_write  # type: ignore[method-assign, assignment]


def group(group_id: int, version: int, seed: int) -> Group:
    """A group of one prompt and 8 completions of random tokens, with rewards that differ."""
    rng = np.random.default_rng((seed, group_id))
    completions = []
    for i in range(SETTINGS["group_size"]):
        size = int(rng.integers(MIN_LENGTH, MAX_LENGTH))
        ids = rng.integers(5, VOCAB, size).astype(np.int32)
        logprobs = -rng.exponential(1.0, size).astype(np.float32)
        versions = np.full(size, version, np.int32)
        completions.append(sampled_completion(ids, logprobs, versions, "stop", float(i % 2), {"exact": float(i % 2)}))
    return Group(group_id, 1, group_id, version, rng.integers(5, VOCAB, PROMPT).astype(np.int32), tuple(completions))


async def feed(ledger: Ledger, seed: int) -> None:
    """Act as the rollout worker: commit a group for each lease that the ledger grants, until all are committed."""
    signal, committed = "0", 0
    while committed < STEPS * SETTINGS["batch_size"]:
        version = (await ledger.newest())[0]
        admission = await ledger.admit("rollout-0", version, SETTINGS["batch_size"], 60)
        for lease in admission.leases:
            await ledger.commit(lease, group(lease.group_id, lease.version, seed))
        committed += len(admission.leases)
        if not admission.leases:
            signal = await ledger.signal(signal, 1.0)


async def train(url: str, folder: Path, seed: int) -> list[float]:
    """Train all steps; returns the seconds of each after the warm-up, without waits for groups and checkpoints."""
    settings = Hyperparameters.model_validate(SETTINGS | {"seed": seed})
    rows = STEPS * settings.batch_size
    redis = connect(url)
    jobs, ledger = JobStore(redis), Ledger(redis, JOB)
    await jobs.create(Job(id=JOB, created_at=0.0, model="adder", model_path=str(MODEL), training_file="file-x"))
    await ledger.open(settings.limits(rows))
    config = worker_config(
        JOB,
        "learner",
        redis_url=url,
        weights_root=str(folder / "weights"),
        model_path=str(MODEL),
        output_dir=str(folder / "output"),
        rows=rows,
        total_steps=STEPS,
        hyperparameters=settings.model_dump(),
    )
    worker = LearnerWorker.from_config(config)
    await worker.start()
    await asyncio.gather(worker.run(), feed(ledger, seed))
    await worker.stop()
    steps = [data for _, kind, data in await jobs.metrics(JOB) if kind == "step"]
    await redis.aclose()
    return [sum(v for k, v in s["seconds"].items() if k not in ("wait", "checkpoint")) for s in steps][WARM_UP:]


def main() -> None:
    options = arguments("keep_rollouts", __doc__).parse_args()
    times = RecorderTimes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder)
        server.start()
        try:
            steps = asyncio.run(train(server.url, folder, options.seed))
        finally:
            server.stop()
    step, path, write = (statistics.median(values) for values in (steps, times.path[WARM_UP:], times.write[WARM_UP:]))
    share = (path + write) / step
    figures = (
        f"keeping {1e3 * (path + write):.2f} ms a step of {1e3 * step:.0f} ms: {100 * share:.2f} % in all, "
        f"{1e6 * path:.0f} µs of it on the path (at most {100 * MAX_SHARE:.0f} %)"
    )
    result = {"step_seconds": steps, "path_seconds": times.path, "write_seconds": times.write}
    report("keep_rollouts", share <= MAX_SHARE, figures, result, options)


if __name__ == "__main__":
    main()
