"""The bodies of OpenAI's fine-tuning surface: what is taken, and how what is stored looks to the client."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from headrace_core.config.hyperparameters import Hyperparameters

from .base import RequestModel
from .chat import TextFormat

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Reference = Annotated[str, StringConstraints(max_length=4096)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Reinforcement(RequestModel):
    """`method.reinforcement`: what is rewarded, and how it is trained."""

    grader: dict[str, Any]
    hyperparameters: Hyperparameters = Field(default_factory=lambda: Hyperparameters.model_validate({}))
    response_format: TextFormat | None = None

    @field_validator("response_format", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and str(value.get("type")).startswith("json_"):
            raise ValueError("completions are sampled as plain text: have the reward look at their form")
        return value


class Method(RequestModel):
    """`method`: reinforcement is the only type."""

    type: Literal["reinforcement"]
    reinforcement: Reinforcement


class Wandb(RequestModel):
    """A run at Weights & Biases; the job's id is its name where none is given."""

    project: _Name
    entity: _Name | None = None
    name: _Name | None = None
    tags: list[_Name] = Field(default_factory=list, max_length=50)


class Integration(RequestModel):
    """Where a job's measurements are sent as well."""

    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(RequestModel):
    """The body of POST /v1/fine_tuning/jobs."""

    model: Reference
    training_file: Reference
    method: Method
    validation_file: Reference | None = None
    suffix: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int | None = Field(None, ge=0, le=2**32 - 1)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    integrations: list[Integration] | None = Field(None, max_length=1)
