"""What the conformance tests ask about: a job in every state with a whole history, files, checkpoints, kept completions
and keys, under ids that the tests know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.rollout_records import RolloutStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import TransitionOutcome
from headrace_core.redis_access.client import run
from headrace_core.types.events import StepSummary
from headrace_core.types.job import CHECKPOINT_MODEL, Checkpoint, Job, JobError, Status, model_name
from headrace_core.types.staleness import Limits
from headrace_gateway.auth.api_keys import KeyStore
from headrace_gateway.files.file_store import FileStore, StoredFile
from headrace_lab.paths import ADDER
from headrace_lab.services.jobs import PATHS

from .conftest import GRADER, MODEL
from .kept_groups import completion, group
from .test_observe import EVALUATION, UPDATE, WORKER, counted, step

STEPS = 4
TRAINING_FILE = "file-8f2c1d9ab34e4f6f9a7c5e21"
"""What the document's example of a submission trains on."""
METRICS = {"train_mean_reward": 0.4, "full_valid_mean_reward": 0.75}


@dataclass
class World:
    """Ids of what there is, by the name of the path parameter that asks for it."""

    ids: dict[str, list[str]] = field(default_factory=dict)


async def seeded(redis: Redis, data_dir: Path) -> World:
    """An emptied Redis with all of it; each call makes the same ids."""
    await run(redis.flushall())
    jobs, files = JobStore(redis), FileStore(redis, data_dir / "files", 10_000_000)
    named = [f"file-{number}" for number in range(5)] + [TRAINING_FILE]
    for number, file_id in enumerate(named):
        with (ADDER / "train.jsonl").open("rb") as source:
            await files.keep(StoredFile(file_id, 10.0 + number, f"é {number}.jsonl", 0, "fine-tune"), source)
    world = World({"file_id": named[:-1], "worker": ["rollout-0"], "group": ["0", "1", "2"]})
    for status in PATHS:
        for copy in range(3 if status in ("queued", "running", "paused") else 1):
            job = _job(f"ftjob-{status}{copy}", number=len(await jobs.ids()))
            await _seed_job(redis, jobs, job, status, data_dir)
            world.ids.setdefault("job_id", []).append(job.id)
            if status == "succeeded":
                world.ids["name"] = [MODEL, model_name(job, 2), model_name(job), model_name(job, 4)]
    world.ids["file_id"].append("file-results-succeeded0")
    keys = KeyStore(redis)
    world.ids["key_id"] = [(await keys.create(name, "user"))[0].id for name in ("alice", "bob")]
    return world


def _job(job_id: str, number: int) -> Job:
    settings = {"n_steps": 10, "batch_size": 4, "max_staleness": 2, "learning_rate": 1e-5}
    settings |= {"max_context": 256, "max_tokens": 64}  # as a submission of this model would make them
    return Job(
        id=job_id, created_at=100.0 + number, model=MODEL, model_path=str(ADDER / "model"), training_file="file-0",
        suffix="carry", metadata={"team": "arithmetic"}, grader=GRADER, rows=8, total_steps=10,
        hyperparameters=Hyperparameters.model_validate(settings).model_dump(),
    )  # fmt: skip


async def _seed_job(redis: Redis, jobs: JobStore, job: Job, status: Status, data_dir: Path) -> None:
    await jobs.create(job)
    await jobs.emit_event(job.id, "Created")
    ended: dict[Status, Any] = {
        "succeeded": model_name(job),
        "failed": JobError("too_many_reward_failures", "the reward failed", "grader"),
    }
    for reached in PATHS[status]:
        await jobs.move(job.id, reached, ended.get(reached))
    if status in ("validating_files", "queued"):
        return
    ledger = Ledger(redis, job.id)
    await ledger.open(Limits(batch_size=4, max_staleness=2, total_groups=40))
    leases = (await ledger.admit("rollout-0", 0, 3, 60.0)).leases
    await ledger.fail(leases[0], TransitionOutcome.REWARD_FAILED, "no such thing")
    measured: list[Any] = [*(step(n, n / 10) for n in range(1, STEPS + 1)), EVALUATION, UPDATE]
    for metrics in measured:
        await jobs.record(job.id, metrics)
    await jobs.record_heartbeat(job.id, WORKER)
    await jobs.record_reward(job.id, counted("rollout-0", 1.0, 9.0))
    await jobs.emit_event(job.id, "Step 1/10", type="metrics", data=StepSummary.of(step(1), 2))
    for number in (2, STEPS):
        folder = _checkpoint(data_dir / "jobs" / job.id / "checkpoints" / str(number))
        saved = Checkpoint(f"ftckpt_{job.id}{number}", 90.0, number, model_name(job, number), str(folder), METRICS)
        await jobs.add_checkpoint(job.id, saved)
    kept = [group(n, n, [completion("93", n)]) for n in range(1, STEPS + 1)]
    await RolloutStore(redis, job.id).add(kept, 10_000_000)
    if status == "succeeded":
        await jobs.update(job.id, trained_tokens=1234)


def _checkpoint(folder: Path) -> Path:
    """A folder that a checkpoint may be deleted with: the model's files in it are links."""
    model = folder / CHECKPOINT_MODEL
    model.mkdir(parents=True, exist_ok=True)
    for file in (ADDER / "model").iterdir():
        if not (model / file.name).exists():
            (model / file.name).symlink_to(file)
    return folder
