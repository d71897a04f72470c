"""Records some groups of each settled step, with the role of every token in the step, for users to read.

    worker: settle ──► record ─┬─► first wait for the last write, which began a whole step ago
                               └─► task: pack, add to the store        concurrent with the next step

Invariants: nothing of a step is recorded before the step is settled; at most one write is in progress; a failed write
fails the learner, one step later at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from redis.asyncio import Redis

from headrace_core.concurrency import cancel
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.rollout_records import (
    MAX_COMPLETIONS,
    RecordedCompletion,
    Rollout,
    RolloutStore,
    TokenRole,
    chosen,
    pack,
)
from headrace_core.types.trajectory import F32, I32, NO_VERSION, U8, Completion, Group, Role

from .algorithms.token_selection import TrainableCompletion
from .training.trainer import StepResult

MIB = 1024 * 1024


class RolloutRecorder:
    """Records groups by the job's settings keep_rollouts and keep_rollouts_mib."""

    def __init__(self, redis: Redis, job_id: str, settings: Hyperparameters) -> None:
        self._store = RolloutStore(redis, job_id)
        self._count, self._max_bytes = settings.keep_rollouts, settings.keep_rollouts_mib * MIB
        self._writing: asyncio.Task[None] | None = None

    async def record(self, groups: Sequence[Group], result: StepResult, step: int) -> None:
        """Begin to write groups of the settled step `step` (1 for the first). Raises the error of the write before."""
        if not self._count:
            return
        await self.flush()
        self._writing = asyncio.create_task(self._write(groups, result, step), name="keep rollouts")

    async def flush(self) -> None:
        """Wait until everything is in the store. Raises the error of the write."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def close(self) -> None:
        """Cancel the write in progress, if there is one. Idempotent."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await cancel([writing])

    async def _write(self, groups: Sequence[Group], result: StepResult, step: int) -> None:
        await self._store.add(rollouts(groups, result, step, self._count), self._max_bytes)


def rollouts(groups: Sequence[Group], result: StepResult, step: int, count: int) -> list[Rollout]:
    """The records of `count` groups of a step, in ascending order."""
    wanted = set(chosen((g.group_id for g in groups), count))
    pairs = sorted(zip(groups, result.samples, strict=True), key=lambda pair: pair[0].group_id)
    return [_rollout(group, samples, result, step) for group, samples in pairs if group.group_id in wanted]


def _rollout(group: Group, samples: Sequence[TrainableCompletion], result: StepResult, step: int) -> Rollout:
    by_completion = {sample.completion: sample for sample in samples}
    records = [
        _record(group, completion, by_completion.get(number), result)
        for number, completion in enumerate(group.completions[:MAX_COMPLETIONS])
    ]
    if group.greedy is not None:
        roles = np.full(len(group.greedy), TokenRole.GREEDY, U8)
        trained_reward = samples[0].trajectory.greedy if samples else group.greedy.reward
        records.append(_packed(group.greedy, roles, np.full(len(roles), np.nan), trained_reward, greedy=True))
    return Rollout(
        group=group.group_id,
        step=step,
        row=group.row,
        attempt=group.attempt,
        prompt_ids=pack(group.prompt_ids, I32),
        completions=records,
        group_size=len(group.completions),
    )


def _record(
    group: Group, completion: Completion, sample: TrainableCompletion | None, result: StepResult
) -> RecordedCompletion:
    """The record of one completion. `sample` None: it has no reward, or no greedy completion to be compared with."""
    roles, importance = _untrained_roles(completion, sample is not None), np.full(len(completion), np.nan)
    advantage, trained_reward = None, completion.reward if sample is None else sample.trajectory.reward
    if sample is not None and sample.tokens:
        positions = sample.targets_at - len(group.prompt_ids)
        roles[positions], importance[positions] = TokenRole.TRAINED, result.importance_N[sample.rows]
        advantages = result.advantages_N[sample.rows][~sample.answer]
        advantage = float(advantages.mean()) if len(advantages) else None
    return _packed(completion, roles, importance, trained_reward, advantage)


def _untrained_roles(completion: Completion, rewarded: bool) -> npt.NDArray[np.uint8]:
    """[T] the `TokenRole` of each token if it is not in the gradient: a trainable one must be too old then."""
    if not rewarded:
        return np.full(len(completion), TokenRole.NO_REWARD, U8)
    foreign = (completion.versions == NO_VERSION) | (completion.roles == Role.ENVIRONMENT)
    others = np.where(foreign, TokenRole.NOT_SAMPLED, TokenRole.ZERO_WEIGHT)
    return np.where(completion.trainable, TokenRole.TOO_OLD, others).astype(U8)


def _packed(
    completion: Completion,
    roles: npt.NDArray[np.uint8],
    importance: npt.NDArray[np.float64],
    trained_reward: float | None,
    advantage: float | None = None,
    greedy: bool = False,
) -> RecordedCompletion:
    return RecordedCompletion(
        token_ids=pack(completion.token_ids, I32),
        versions=pack(completion.versions, I32),
        logprobs=pack(completion.logprobs, F32),
        importance=pack(importance, F32),
        roles=pack(roles, U8),
        reward=completion.reward,
        trained_reward=trained_reward,
        components=completion.components,
        advantage=advantage,
        finish_reason=completion.finish_reason,
        greedy=greedy,
        notes=completion.notes,
    )
