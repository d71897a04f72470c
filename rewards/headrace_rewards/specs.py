"""What every grader's description has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from headrace_core.errors import InvalidRequest
from headrace_rewards.protocol import Need


class GraderSpec(BaseModel):
    """A grader as it is written in a request; each type adds its fields and narrows `type` to its own name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    name: str = Field(min_length=1, max_length=64)

    def needs(self) -> frozenset[Need]:
        """What must be measured of each completion before it is scored; a grader of graders adds up theirs."""
        return frozenset()

    def middle(self) -> float:
        """A reward from here on counts as high: the middle of its range."""
        return 0.5

    def truths(self) -> dict[str, float]:
        """Components that say what the reward should have been, each with the value from which on it counts as high."""
        return {}

    def opinions(self) -> dict[str, float]:
        """Components that are each a judgement of the whole completion, with the same value; they may disagree."""
        return {}


def _parsed(value: Any) -> GraderSpec:
    from headrace_rewards.registry import validate  # the registry knows every type, those that hold others too

    if isinstance(value, GraderSpec):
        return value
    try:
        return validate(value)
    except InvalidRequest as fault:
        raise ValueError(fault.message) from None


AnyGrader = Annotated[SerializeAsAny[GraderSpec], BeforeValidator(_parsed)]
"""A field that holds another grader."""
