"""Kept groups as the REST surface shows them: token ids become text, arrays lists, and what is unknown null."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from headrace_core.rollouts import KeptCompletion, Part, Rollout, floats, ints, parts_of
from headrace_core.staleness import ages
from headrace_core.trajectory import NO_VERSION

from .token_text import spelled, tokenizer_of

LeftOut = Literal["too_old", "zero_weight", "not_sampled", "no_reward", "greedy"]
_LEFT_OUT: dict[int, LeftOut | None] = {
    Part.TRAINED: None,
    Part.TOO_OLD: "too_old",
    Part.ZERO_WEIGHT: "zero_weight",
    Part.NOT_SAMPLED: "not_sampled",
    Part.NO_REWARD: "no_reward",
    Part.GREEDY: "greedy",
}
_DECIMALS = 5


class RolloutCompletion(BaseModel):
    """One completion; the lists have one element a token."""

    index: int = Field(description="Its place in the group.")
    text: str
    tokens: list[str] = Field(
        description="What each token adds to the text; empty where a later token completes the character."
    )
    token_ids: list[int]
    versions: list[int | None] = Field(description="Policy version that sampled the token; null: none did.")
    ages: list[int | None] = Field(description="Versions between that and the one that the step updated.")
    logprobs: list[float | None] = Field(description="Natural log, of the distribution that was sampled from.")
    importance_weights: list[float | None] = Field(
        description="π_prox/π_behaviour as the loss used it; null where nothing was computed: the token is left out, "
        "or all rewards of its group are equal."
    )
    masked: list[bool] = Field(description="Whether the token is left out of the gradient.")
    left_out: list[LeftOut | None] = Field(description="Why.")
    reward: float | None
    components: dict[str, float]
    advantage: float | None = Field(description="Mean over the sampled tokens in the gradient.")
    finish_reason: str
    greedy: bool = Field(description="Sampled greedily, to be compared with; never trained on.")


class RolloutGroup(BaseModel):
    """One prompt with its completions, as a step consumed them."""

    object: Literal["fine_tuning.job.rollout"] = "fine_tuning.job.rollout"
    id: str = Field(description="`<step>-<group>`.")
    fine_tuning_job_id: str
    group: int
    step: int = Field(description="1 for the first.")
    version: int = Field(description="The policy version that the step updated: `step` − 1.")
    row: int = Field(description="Row of the training file, 0 for the first.")
    attempt: int = Field(description="Which lease of the group brought it in.")
    group_size: int = Field(description="Completions of the group, of which the first 32 are kept.")
    prompt: str
    prompt_token_ids: list[int]
    completions: list[RolloutCompletion] = Field(description="In sampled order; a greedy one last.")


class RolloutList(BaseModel):
    """A page of kept groups."""

    object: Literal["list"] = "list"
    data: list[RolloutGroup]
    has_more: bool
    first_id: str | None
    last_id: str | None


def tokens_in(rollout: Rollout) -> int:
    """How many tokens its completions have."""
    return sum(len(c.parts) for c in rollout.completions)


def rollout_list(job_id: str, model: Path, rollouts: list[Rollout], has_more: bool) -> RolloutList:
    """The page of these groups, in the words of a model folder; work for a thread. Raises as `tokenizer_of`."""
    data = [_group(job_id, tokenizer_of(model), rollout) for rollout in rollouts]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return RolloutList(data=data, has_more=has_more, first_id=ends[0], last_id=ends[1])


def _group(job_id: str, tokenizer: Tokenizer, rollout: Rollout) -> RolloutGroup:
    prompt = ints(rollout.prompt_ids).tolist()
    return RolloutGroup(
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


def _completion(tokenizer: Tokenizer, rollout: Rollout, index: int, kept: KeptCompletion) -> RolloutCompletion:
    ids, versions = ints(kept.token_ids).tolist(), ints(kept.versions)
    tokens = spelled(tokenizer, ids)
    sampled = versions != NO_VERSION
    left_out = [_LEFT_OUT[part] for part in parts_of(kept.parts).tolist()]
    return RolloutCompletion(
        index=index,
        text="".join(tokens),
        tokens=tokens,
        token_ids=ids,
        versions=_or_none(versions, sampled),
        ages=_or_none(ages(versions, rollout.version), sampled),
        logprobs=_finite(kept.logprobs),
        importance_weights=_finite(kept.importance),
        masked=[why is not None for why in left_out],
        left_out=left_out,
        reward=kept.reward,
        components=kept.components,
        advantage=kept.advantage,
        finish_reason=kept.finish_reason,
        greedy=kept.greedy,
    )


def _or_none(values: npt.NDArray[np.int32], known: npt.NDArray[np.bool_]) -> list[int | None]:
    return [value if k else None for value, k in zip(values.tolist(), known.tolist(), strict=True)]


def _finite(packed: bytes) -> list[float | None]:
    values = floats(packed).astype(np.float64).round(_DECIMALS)
    finite = np.isfinite(values).tolist()
    return [value if k else None for value, k in zip(values.tolist(), finite, strict=True)]
