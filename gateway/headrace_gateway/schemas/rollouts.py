"""Groups that steps consumed, with every token's part in them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Page, ResponseModel

LeftOut = Literal["too_old", "zero_weight", "not_sampled", "no_reward", "greedy"]


class RolloutCompletion(ResponseModel):
    """One completion; the lists have one element a token."""

    index: Annotated[int, Field(description="Position of the completion in its group.")]
    text: str
    tokens: Annotated[
        list[str],
        Field(description="Text that each token adds; empty if a later token completes the character."),
    ]
    token_ids: list[int]
    versions: Annotated[list[int | None], Field(description="Policy version that sampled the token; null if none did.")]
    ages: Annotated[
        list[int | None],
        Field(description="Age of the token: versions between that one and the one that the step updated."),
    ]
    logprobs: Annotated[
        list[float | None], Field(description="Natural log-probability under the sampled distribution.")
    ]
    importance_weights: Annotated[
        list[float | None],
        Field(
            description="π_prox/π_behaviour as the loss used it; null where nothing was computed: the token is left "
            "out, or all rewards of its group are equal."
        ),
    ]
    masked: Annotated[list[bool], Field(description="Whether the token is left out of the gradient.")]
    left_out: Annotated[list[LeftOut | None], Field(description="Why the token is left out of the gradient.")]
    reward: Annotated[float | None, Field(description="The reward as the grader gave it.")]
    trained_reward: Annotated[
        float | None,
        Field(
            description="What the step trained on: another figure where the reward follows from a likelihood, which "
            "the policy that was updated computed anew."
        ),
    ]
    components: dict[str, float]
    notes: Annotated[dict[str, str], Field(description="Texts that the reward returned beside its score, by name.")]
    advantage: Annotated[float | None, Field(description="Mean over the sampled tokens in the gradient.")]
    finish_reason: str
    greedy: Annotated[bool, Field(description="Whether it was sampled greedily, as a baseline; never trained on.")]


class RolloutGroup(ResponseModel):
    """One prompt with its completions, as a step consumed them."""

    object: Literal["fine_tuning.job.rollout"]
    id: Annotated[str, Field(description="`<step>-<group>`.")]
    fine_tuning_job_id: str
    group: int
    step: Annotated[int, Field(description="Number of the step; 1 for the first.")]
    version: Annotated[int, Field(description="The policy version that the step updated: `step` − 1.")]
    row: Annotated[int, Field(description="Row of the training file, 0 for the first.")]
    attempt: Annotated[int, Field(description="Number of the lease under which the group was committed.")]
    group_size: Annotated[
        int, Field(description="Number of completions of the group, of which the first 32 are recorded.")
    ]
    prompt: str
    prompt_token_ids: list[int]
    completions: Annotated[list[RolloutCompletion], Field(description="In sampled order; a greedy one last.")]


class RolloutList(Page):
    """A page of kept groups."""

    data: list[RolloutGroup]
