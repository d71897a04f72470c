"""What trying a grader answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .base import ResponseModel


class ValidatedGrader(ResponseModel):
    """A grader that works."""

    grader: Annotated[dict[str, Any], Field(description="The grader with all its defaults.")]
    ignored: Annotated[list[str], Field(description="Fields without an effect, each with an explanation.")]


class GraderErrors(ResponseModel):
    """OpenAI's names for what can go wrong."""

    formula_parse_error: bool
    invalid_variable_error: bool
    model_grader_parse_error: bool
    model_grader_refusal_error: bool
    model_grader_server_error: bool
    model_grader_server_error_details: str | None
    other_error: bool
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool


class GraderFailure(ResponseModel):
    """Why a grader has no reward."""

    kind: Annotated[str, Field(description="Kind of failure; see docs/rewards.md.")]
    message: str
    traceback: str


class GraderRunMetadata(ResponseModel):
    """How the grader ran."""

    name: str
    type: str
    execution_time: Annotated[float, Field(description="Seconds that grading took.")]
    scores: Annotated[
        dict[str, float], Field(description="Scores of the grader and of the graders within it, by name.")
    ]
    notes: Annotated[dict[str, str], Field(description="Texts that the grader returned beside the score, by name.")]
    errors: GraderErrors
    failure: GraderFailure | None
    token_usage: Annotated[None, Field(description="Tokens of model graders are not counted.")]
    sampled_model_name: str | None


class GraderRun(ResponseModel):
    """What a grader made of one completion."""

    reward: Annotated[
        float | None, Field(description="Null if the grader failed or does not apply, which is not a reward of 0.")
    ]
    sub_rewards: dict[str, float]
    metadata: GraderRunMetadata
    model_grader_token_usage_per_model: dict[str, int]
