"""What is real and what is simulated, and the components of the rollout workers.

real       LearnerWorker · RolloutWorker, GroupBuilder and Evaluator · JobController, its WorkerGroup and Evaluations ·
           Ledger, SettingsLog, WorkerDrains, JobStore on a real Redis server · staleness.select · WeightStore and the
           search for the newest checkpoint, on real folders in memory
simulated  training (a hash chained over all that a step reads) · engine and reward · the writing of a checkpoint's
           state · Ray, which starts, calls and kills simulated processes

The real workers are given simulated components: `RolloutPorts` here, `LearnerPorts` in `fake_learner`,
`ControllerPorts` in `fake_ray` and `queue_fake_ray`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.weight_store import WeightStore
from headrace_lab.virtual.rollout_parts import InstantReward, NumberedPrompts, no_sandbox
from headrace_lab.virtual.simulated_engine import DecodeSpeed, SimulatedEngine
from headrace_rewards.protocol import Sample
from headrace_rollout.engines.engine import RequestRefused
from headrace_rollout.ports import RolloutPorts
from headrace_simulation.fault_plan import ROWS
from headrace_simulation.virtual_loop import Process
from headrace_simulation.world import HEARTBEAT_SECONDS, ProcessClock, World


def _value(sample: Sample) -> float:
    """A reward that differs between completions, except in every fourth group. In an evaluation, it is the version that
    sampled the completion."""
    if sample.draw is None:
        return float(np.mean(sample.token_ids or ()))
    if sample.draw.group % 4 == 3:
        return 0.5
    return (sample.draw.completion % 2) * 1.0


class Engine(SimulatedEngine):
    """The engine of one worker. It takes a while to load, and refuses one row if the plan says so. The token ids are
    the versions that sampled them."""

    def __init__(self, world: World, worker: str) -> None:
        job = world.plan.job
        rng = np.random.default_rng([world.plan.seed, *worker.encode()])
        tails = np.minimum(job.longest, rng.pareto(1.2, (ROWS, job.group_size + 2)) + job.shortest)
        super().__init__(DecodeSpeed(job.token_seconds, 0.0, 0.05), tails.astype(np.int64))
        self._world = world

    async def start(self) -> None:
        await asyncio.sleep(0.3)

    async def generate(self, prompt: Any, sampling: Any) -> Any:
        if prompt[0] == self._world.plan.job.refused_row:
            raise RequestRefused(f"row {prompt[0]} cannot be served")
        if sampling.temperature == 0.0:
            self._world.before_greedy()
        sampled = await super().generate(prompt, sampling)
        return replace(sampled, token_ids=sampled.versions.copy())


def rollout_ports(world: World, process: Process, config: WorkerConfig) -> RolloutPorts:
    """The components of the rollout worker in `process`."""
    clock = ProcessClock(process)
    return RolloutPorts(
        job=JobRecord.on(process.port, config.job_id, clock),
        engine=cast(Any, Engine(world, config.worker)),
        reward=InstantReward(_value),
        weights=WeightStore(Path(config.weights_root), config.job_id),
        prompts=NumberedPrompts(lambda file: ROWS),
        sandbox=no_sandbox,
        clock=clock,
        heartbeat_seconds=HEARTBEAT_SECONDS,
    )
