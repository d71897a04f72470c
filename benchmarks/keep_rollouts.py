"""What keeping completions for reading costs the learner: seconds a step, beside the step itself.

A real learner on a real Redis trains headrace/tiny-adder, 32 groups of 8 completions a step as the example job has,
and keeps the default number of groups. The groups are made here: tokens by chance, of lengths as the adder writes.

    on the path   what a step waits for: the write of the step before, if it is not done yet
    in all        that, and the write itself, which goes on beside the next step: packing and the round trip to Redis

Against: the seconds that a step takes without waiting for groups.
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
from headrace_core.jobs.job_store import Job, JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import connect
from headrace_core.types.trajectory import Group, sampled_completion
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.paths import ADDER
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_learner.rollout_recorder import RolloutRecorder
from headrace_learner.worker import LearnerWorker

MOST_SHARE = 0.01
"""Of a step's seconds, keeping in all; written before the first run."""

MODEL = ADDER / "model"
JOB, STEPS, WARM_UP = "ftjob-kept", 14, 2
VOCAB, PROMPT, SHORTEST, LONGEST = 300, 14, 16, 40
SETTINGS: dict[str, Any] = {
    "batch_size": 32,
    "group_size": 8,
    "n_steps": STEPS,
    "learning_rate": 1.5e-4,
    "max_tokens": 64,
    "max_mismatch": 1e9,  # no engine sampled these groups
}


class Watched:
    """Seconds of every `keep` and every write, noted around the real ones."""

    def __init__(self) -> None:
        self.path = list[float]()
        self.write = list[float]()
        keep, write = RolloutRecorder.record, RolloutRecorder._write

        async def timed_keep(keeper: RolloutRecorder, *args: Any) -> None:
            began = time.perf_counter()
            await keep(keeper, *args)
            self.path.append(time.perf_counter() - began)

        async def timed_write(keeper: RolloutRecorder, *args: Any) -> None:
            began = time.perf_counter()
            await write(keeper, *args)
            self.write.append(time.perf_counter() - began)

        RolloutRecorder.record, RolloutRecorder._write = timed_keep, timed_write  # type: ignore[method-assign, assignment]


def group(group_id: int, version: int, seed: int) -> Group:
    """A prompt and 8 completions of random tokens, rewards that differ."""
    rng = np.random.default_rng((seed, group_id))
    made = []
    for i in range(SETTINGS["group_size"]):
        size = int(rng.integers(SHORTEST, LONGEST))
        ids = rng.integers(5, VOCAB, size).astype(np.int32)
        logprobs = -rng.exponential(1.0, size).astype(np.float32)
        versions = np.full(size, version, np.int32)
        made.append(sampled_completion(ids, logprobs, versions, "stop", float(i % 2), {"exact": float(i % 2)}))
    return Group(group_id, 1, group_id, version, rng.integers(5, VOCAB, PROMPT).astype(np.int32), tuple(made))


async def feed(ledger: Ledger, seed: int) -> None:
    """The rollout worker's part: as many groups as the window takes, until the ledger gives no more."""
    heard, made = "0", 0
    while made < STEPS * SETTINGS["batch_size"]:
        version = (await ledger.newest())[0]
        admission = await ledger.admit("rollout-0", version, SETTINGS["batch_size"], 60)
        for lease in admission.leases:
            await ledger.commit(lease, group(lease.group_id, lease.version, seed))
        made += len(admission.leases)
        if not admission.leases:
            heard = await ledger.signal(heard, 1.0)


async def trained(url: str, folder: Path, seed: int) -> list[float]:
    """Seconds of every step but the first ones, without its wait for groups and without checkpoints."""
    settings = Hyperparameters.model_validate(SETTINGS | {"seed": seed})
    rows = STEPS * settings.batch_size
    redis = connect(url)
    jobs, ledger = JobStore(redis), Ledger(redis, JOB)
    await jobs.create(Job(id=JOB, created_at=0.0, model="adder", model_path=str(MODEL), training_file="file-x"))
    await ledger.open(settings.limits(rows))
    config = WorkerConfig(
        job_id=JOB,
        worker="learner",
        redis_url=url,
        weights_root=str(folder / "weights"),
        model_path=str(MODEL),
        training_file="unused",
        validation_file=None,
        output_dir=str(folder / "output"),
        rows=rows,
        total_steps=STEPS,
        grader={},
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
    watched = Watched()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder)
        server.start()
        try:
            steps = asyncio.run(trained(server.url, folder, options.seed))
        finally:
            server.stop()
    step, path, write = (
        statistics.median(values) for values in (steps, watched.path[WARM_UP:], watched.write[WARM_UP:])
    )
    share = (path + write) / step
    figures = (
        f"keeping {1e3 * (path + write):.2f} ms a step of {1e3 * step:.0f} ms: {100 * share:.2f} % in all, "
        f"{1e6 * path:.0f} µs of it on the path (at most {100 * MOST_SHARE:.0f} %)"
    )
    result = {"step_seconds": steps, "path_seconds": watched.path, "write_seconds": watched.write}
    report("keep_rollouts", share <= MOST_SHARE, figures, result, options)


if __name__ == "__main__":
    main()
