"""What every grader's description has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from headrace_core.errors import InvalidRequest
from headrace_rewards.protocol import Need

MAX_NAME = 256


def _is_none(value: Any) -> bool:
    return value is None


class GraderSpec(BaseModel):
    """A grader as it is written in a request; each type adds its fields and narrows `type` to its own name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    name: str = Field(min_length=1, max_length=MAX_NAME)
    """Its type where none is given; in a `multi` grader the name that the formula has for it."""
    pass_threshold: float | None = Field(default=None, allow_inf_nan=False, exclude_if=_is_none)
    """OpenAI's: a reward from here on counts as high, instead of `middle`. The reward stays as it is."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {**given, "name": given.get("type")} if isinstance(given, dict) and given.get("name") is None else given

    def needs(self) -> frozenset[Need]:
        """What must be measured of each completion before it is scored; a grader of graders adds up theirs."""
        return frozenset()

    def high_from(self) -> float:
        """A reward from here on counts as high."""
        return self.middle() if self.pass_threshold is None else self.pass_threshold

    def middle(self) -> float:
        """The middle of its range."""
        return 0.5

    def ignored(self) -> list[str]:
        """What of this description has no effect here, in words; of a grader of graders, its own alone."""
        return []

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
