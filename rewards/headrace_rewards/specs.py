"""What every grader's description has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class GraderSpec(BaseModel):
    """A grader as it is written in a request; each type adds its fields and narrows `type` to its own name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    name: str = Field(min_length=1, max_length=64)
