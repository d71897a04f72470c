"""What the learner writes down of a settled step, for reading: some groups, and every token's part in the step.

    worker: settle ──► keep ─┬─► (before: wait for the last write, which was a whole step ago)
                             └─► task: pack, add to the store          beside the next step's wait and training

Invariants: nothing of a step is kept before the step is settled; at most one write is under way; a write that failed
fails the learner, one step late at most.
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
    """Keeps some groups of each step, by the job's settings."""

    def __init__(self, redis: Redis, job_id: str, settings: Hyperparameters) -> None:
        self._store = RolloutStore(redis, job_id)
        self._count, self._most_bytes = settings.keep_rollouts, settings.keep_rollouts_mib * MIB
        self._writing: asyncio.Task[None] | None = None

    async def record(self, groups: Sequence[Group], result: StepResult, step: int) -> None:
        """Of the settled step `step` (1 for the first). Raises what went wrong with the write before."""
        if not self._count:
            return
        await self.flush()
        self._writing = asyncio.create_task(self._write(groups, result, step), name="keep rollouts")

    async def flush(self) -> None:
        """Returns when everything is in the store. Raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def close(self) -> None:
        """Leave the write under way, if there is one. Idempotent."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await cancel([writing])

    async def _write(self, groups: Sequence[Group], result: StepResult, step: int) -> None:
        await self._store.add(rollouts(groups, result, step, self._count), self._most_bytes)


def rollouts(groups: Sequence[Group], result: StepResult, step: int, count: int) -> list[Rollout]:
    """The kept groups of a step, ascending."""
    wanted = set(chosen((g.group_id for g in groups), count))
    pairs = sorted(zip(groups, result.samples, strict=True), key=lambda pair: pair[0].group_id)
    return [_rollout(group, samples, result, step) for group, samples in pairs if group.group_id in wanted]


def _rollout(group: Group, samples: Sequence[TrainableCompletion], result: StepResult, step: int) -> Rollout:
    by_completion = {sample.completion: sample for sample in samples}
    kept = [
        _kept(group, completion, by_completion.get(number), result)
        for number, completion in enumerate(group.completions[:MAX_COMPLETIONS])
    ]
    if group.greedy is not None:
        parts = np.full(len(group.greedy), TokenRole.GREEDY, U8)
        used = samples[0].trajectory.greedy if samples else group.greedy.reward
        kept.append(_packed(group.greedy, parts, np.full(len(parts), np.nan), used, greedy=True))
    return Rollout(
        group=group.group_id,
        step=step,
        row=group.row,
        attempt=group.attempt,
        prompt_ids=pack(group.prompt_ids, I32),
        completions=kept,
        group_size=len(group.completions),
    )


def _kept(
    group: Group, completion: Completion, sample: TrainableCompletion | None, result: StepResult
) -> RecordedCompletion:
    """`sample` is the completion's part in the gradient; None: it has no reward, or nothing to be compared with."""
    parts, importance = _parts(completion, sample is not None), np.full(len(completion), np.nan)
    advantage, used = None, completion.reward if sample is None else sample.trajectory.reward
    if sample is not None and sample.tokens:
        taken = sample.targets_at - len(group.prompt_ids)
        parts[taken], importance[taken] = TokenRole.TRAINED, result.importance_N[sample.rows]
        advantages = result.advantages_N[sample.rows][~sample.answer]
        advantage = float(advantages.mean()) if len(advantages) else None
    return _packed(completion, parts, importance, used, advantage)


def _parts(completion: Completion, rewarded: bool) -> npt.NDArray[np.uint8]:
    """[T] `TokenRole` of tokens that are not in the gradient, as if none were: what could have been must be too old."""
    if not rewarded:
        return np.full(len(completion), TokenRole.NO_REWARD, U8)
    foreign = (completion.versions == NO_VERSION) | (completion.roles == Role.ENVIRONMENT)
    others = np.where(foreign, TokenRole.NOT_SAMPLED, TokenRole.ZERO_WEIGHT)
    return np.where(completion.trainable, TokenRole.TOO_OLD, others).astype(U8)


def _packed(
    completion: Completion,
    parts: npt.NDArray[np.uint8],
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
        roles=pack(parts, U8),
        reward=completion.reward,
        trained_reward=trained_reward,
        components=completion.components,
        advantage=advantage,
        finish_reason=completion.finish_reason,
        greedy=greedy,
        notes=completion.notes,
    )
