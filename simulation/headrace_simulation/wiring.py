"""The services' own classes in a simulated world, and what is simulated around them.

real       LearnerWorker · RolloutWorker, GroupMaker and Evaluator · JobController, its Supervisors and Evaluations ·
           Ledger, Live, Drains, JobStore over a real redis-server · staleness.select · WeightStore and the search for
           a whole checkpoint, on real folders in memory
simulated  training (a hash chained over all that a step reads) · engine and reward · how a checkpoint's state is
           written · Ray: processes are started, asked, told of deaths and killed in the world
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from headrace_controller import job_controller, liveness, manager, worker_group, worker_supervisor
from headrace_core.ledger import worker_drains
from headrace_core.protocols.grader_check import Outcome, Score
from headrace_core.storage.dataset import Row
from headrace_core.storage.job_folder import remove_partials
from headrace_core.storage.weight_store import WeightStore
from headrace_lab.simulated_engine import DecodeSpeed, SimulatedEngine
from headrace_learner import durable_writes, recovery
from headrace_learner import worker as learner
from headrace_learner.checkpoints import checkpoint
from headrace_rewards.protocol import Sample
from headrace_rollout import evaluation, weight_sync
from headrace_rollout import worker as rollout
from headrace_rollout.engines.engine import RequestRefused
from headrace_rollout.prompts import Prompt
from headrace_simulation.fake_learner import SimulatedLead, load_state, save_state
from headrace_simulation.fault_plan import ROWS
from headrace_simulation.queue_fake_ray import SimulatedPlacement, ask
from headrace_simulation.virtual_loop import PROCESS, here
from headrace_simulation.world import EPOCH

WATCH_SECONDS, BEAT_SECONDS = 2.0, 4.0
"""Twice as long as in the service: such looks and beats, most of which find nothing new, are a quarter of all calls."""
PROMPTS = [Prompt(row, np.array([row], np.int32), Row([], {})) for row in range(ROWS)]


class InstantReward:
    """Differs between completions, but for every fourth group; of an evaluation, it is the version that sampled."""

    async def start(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Score(_value(sample)) for sample in samples]

    async def close(self) -> None: ...


def _value(sample: Sample) -> float:
    if sample.draw is None:
        return float(np.mean(sample.token_ids or ()))
    if sample.draw.group % 4 == 3:
        return 0.5
    return (sample.draw.completion % 2) * 1.0


class Engine(SimulatedEngine):
    """It takes a while to load, and refuses one row, if the plan says so. A token's id is the version that
    sampled it."""

    async def start(self) -> None:
        await asyncio.sleep(0.3)

    async def generate(self, prompt: Any, sampling: Any) -> Any:
        if prompt[0] == here().world.plan.job.refused_row:
            raise RequestRefused(f"row {prompt[0]} cannot be served")
        if sampling.temperature == 0.0:
            here().world.before_greedy()
        sampled = await super().generate(prompt, sampling)
        return replace(sampled, token_ids=sampled.versions.copy())


def _engine(*_: Any) -> Engine:
    """Of the worker that asks."""
    job, seed = here().world.plan.job, here().world.plan.seed
    rng = np.random.default_rng([seed, *here().name.encode()])
    tails = np.minimum(job.longest, rng.pareto(1.2, (ROWS, job.group_size + 2)) + 1)
    return Engine(DecodeSpeed(job.token_seconds, 0.0, 0.05), tails.astype(np.int64))


# ── what the services' modules see ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Clocks:
    """`time`, for the modules that read a clock."""

    def time(self) -> float:
        """The process's wall clock."""
        process = PROCESS.get()
        return EPOCH + self.monotonic() + (0.0 if process is None else process.offset)

    def monotonic(self) -> float:
        """The world's time."""
        return asyncio.get_running_loop().time()


class _Ray:
    """`ray`, for the gateway: that of the world it is in."""

    def available_resources(self) -> dict[str, float]:
        return cast("dict[str, float]", here().world.ray.available())

    def get_actor(self, name: str, namespace: str) -> Any:
        return here().world.ray.get(name, namespace)

    def kill(self, actor: Any) -> None:
        here().world.ray.kill(actor)


def _nodes() -> list[dict[str, float]]:
    return cast("list[dict[str, float]]", here().world.ray.nodes())


def _connect(url: str, *_: Any, **__: Any) -> Any:
    return here().port


class _Weights(WeightStore):
    """Out of the reach of a controller that is dead."""

    def remove(self) -> None:
        if not here().dead:
            super().remove()


def _remove_snapshots(root: Path, job_id: str) -> None:
    if not here().dead:
        here().world.snapshots = []


def _remove_partials(output: Path) -> None:
    if not here().dead:
        remove_partials(output)


async def _prompts(*_: Any) -> Any:
    return PROMPTS


async def _no_sandbox() -> Any:
    return SimpleNamespace(level="none")


@contextmanager
def simulated_surroundings() -> Iterator[None]:
    """Within it, the services' modules find the world where they look for clocks, Redis, files and models."""
    clocks = Clocks()
    files = SimpleNamespace(newest=checkpoint.newest, save=save_state, load=load_state, Found=checkpoint.Found)
    text = SimpleNamespace(text=lambda ids: "")
    changes: list[tuple[Any, str, Any]] = [
        *(
            (module, "time", clocks)
            for module in (
                learner,
                durable_writes,
                rollout,
                weight_sync,
                job_controller,
                worker_supervisor,
                worker_drains,
            )
        ),
        *((module, "time", clocks) for module in (manager, worker_group, evaluation)),
        *((module, "connect", _connect) for module in (learner, rollout, job_controller)),
        *((module, "BEAT_SECONDS", BEAT_SECONDS) for module in (learner, rollout)),
        (job_controller, "WATCH_SECONDS", WATCH_SECONDS),
        (liveness.StallTimer.__init__, "__defaults__", (clocks.monotonic,)),
        (learner, "RankCoordinator", lambda *_: SimulatedLead(here().world, here())),
        (learner, "checkpoint", files),
        (recovery, "checkpoint", files),
        (rollout, "create", _engine),
        (rollout, "build", lambda *_: InstantReward()),
        (rollout, "Tokenizer", lambda *_: text),
        (rollout, "read_within_limits", _prompts),
        (rollout, "probe_level", _no_sandbox),
        (job_controller, "WeightStore", _Weights),
        (job_controller, "snapshot_folder", SimpleNamespace(remove=_remove_snapshots)),
        (job_controller, "remove_partials", _remove_partials),
        (manager, "ray", _Ray()),
        (manager, "_ask", ask),
        (manager, "list_named_actors", lambda **_: here().world.ray.named()),
        *((module, "alive_nodes", _nodes) for module in (manager, worker_group)),
        (worker_group, "only_node", lambda: False),
        (worker_group, "Placement", SimulatedPlacement),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
