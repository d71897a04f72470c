"""Recorded groups as response objects: token ids become text, arrays become lists, unknown values null."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from headrace_core.jobs.rollout_records import RecordedCompletion, Rollout, TokenRole, floats, ints, roles_of
from headrace_core.types.staleness import ages
from headrace_core.types.trajectory import NO_VERSION

from ..schemas.rollouts import LeftOut, RolloutCompletion, RolloutGroup, RolloutList
from ..web.pagination import listing
from .token_text import spelled, tokenizer_of

_LEFT_OUT: dict[int, LeftOut | None] = {
    TokenRole.TRAINED: None,
    TokenRole.TOO_OLD: "too_old",
    TokenRole.ZERO_WEIGHT: "zero_weight",
    TokenRole.NOT_SAMPLED: "not_sampled",
    TokenRole.NO_REWARD: "no_reward",
    TokenRole.GREEDY: "greedy",
}
_DECIMALS = 5


def tokens_in(rollout: Rollout) -> int:
    """Number of tokens of all completions."""
    return sum(len(c.roles) for c in rollout.completions)


def rollout_list(job_id: str, model: Path, rollouts: list[Rollout], has_more: bool) -> RolloutList:
    """The page of these groups, in the words of a model folder; work for a thread. Raises as `tokenizer_of`."""
    return listing([_group(job_id, tokenizer_of(model), rollout) for rollout in rollouts], has_more)


def _group(job_id: str, tokenizer: Tokenizer, rollout: Rollout) -> RolloutGroup:
    prompt = ints(rollout.prompt_ids).tolist()
    return RolloutGroup(
        object="fine_tuning.job.rollout",
        id=rollout.id,
        fine_tuning_job_id=job_id,
        group=rollout.group,
        step=rollout.step,
        version=rollout.version,
        row=rollout.row,
        attempt=rollout.attempt,
        group_size=rollout.group_size,
        prompt="".join(spelled(tokenizer, prompt)),
        prompt_token_ids=prompt,
        completions=[_completion(tokenizer, rollout, i, c) for i, c in enumerate(rollout.completions)],
    )


def _completion(tokenizer: Tokenizer, rollout: Rollout, index: int, recorded: RecordedCompletion) -> RolloutCompletion:
    ids, versions = ints(recorded.token_ids).tolist(), ints(recorded.versions)
    tokens = spelled(tokenizer, ids)
    sampled = versions != NO_VERSION
    left_out = [_LEFT_OUT[part] for part in roles_of(recorded.roles).tolist()]
    return RolloutCompletion(
        index=index,
        text="".join(tokens),
        tokens=tokens,
        token_ids=ids,
        versions=_or_none(versions, sampled),
        ages=_or_none(ages(versions, rollout.version), sampled),
        logprobs=_finite(recorded.logprobs),
        importance_weights=_finite(recorded.importance),
        masked=[why is not None for why in left_out],
        left_out=left_out,
        reward=recorded.reward,
        trained_reward=recorded.trained_reward,
        components=recorded.components,
        notes=recorded.notes,
        advantage=recorded.advantage,
        finish_reason=recorded.finish_reason,
        greedy=recorded.greedy,
    )


def _or_none(values: npt.NDArray[np.int32], known: npt.NDArray[np.bool_]) -> list[int | None]:
    return [value if k else None for value, k in zip(values.tolist(), known.tolist(), strict=True)]


def _finite(packed: bytes) -> list[float | None]:
    values = floats(packed).astype(np.float64).round(_DECIMALS)
    finite = np.isfinite(values).tolist()
    return [value if k else None for value, k in zip(values.tolist(), finite, strict=True)]
