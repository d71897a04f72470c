"""The base class of every grader's description, and its validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from headrace_core.config.exact_model import ExactModel
from headrace_core.errors import InvalidRequest

from ..protocol import Need

MAX_NAME = 256


class Truth(NamedTuple):
    """A component that holds the true value of the reward, or of one of its components."""

    high_from: float
    """Values of the true component from here on count as high."""
    part: str = ""
    """The component whose true value it is; empty for the reward itself."""
    part_high_from: float = 0.0
    """Values of that component from here on count as high; `GraderSpec.high_from` is the threshold of the reward."""

    def within(self, name: str, high_from: float) -> Truth:
        """The same truth seen from an outer grader, where the grader that it belongs to is the component `name` with
        the threshold `high_from`."""
        part = f"{name}.{self.part}" if self.part else name
        return Truth(self.high_from, part, self.part_high_from if self.part else high_from)


SPEC_TYPES: dict[str, type[GraderSpec]] = {}
"""Spec class by type name. Each registers itself when its module is imported; `registry` imports them all."""


def _is_none(value: Any) -> bool:
    return value is None


class GraderSpec(ExactModel):
    """A grader's description in a request. Each type adds its fields, and narrows `type` to its own name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    name: str = Field(min_length=1, max_length=MAX_NAME)
    """By default the type. In a `multi` grader, the name that the formula uses."""
    pass_threshold: float | None = Field(default=None, allow_inf_nan=False, exclude_if=_is_none)
    """OpenAI's field: a reward of this value or more counts as high; by default `middle` is the threshold. It does not
    change the reward."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        names = cls.model_fields["type"].annotation
        if get_origin(names) is Literal:
            SPEC_TYPES.update(dict.fromkeys(get_args(names), cls))

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {**given, "name": given.get("type")} if isinstance(given, dict) and given.get("name") is None else given

    def needs(self) -> frozenset[Need]:
        """What the policy must measure of each completion before it is scored, including for nested graders."""
        return frozenset()

    def high_from(self) -> float:
        """The threshold from which a reward counts as high."""
        return self.middle() if self.pass_threshold is None else self.pass_threshold

    def middle(self) -> float:
        """The middle of the reward's range."""
        return 0.5

    def ignored(self) -> list[str]:
        """Remarks on fields of this spec that have no effect; without those of nested graders."""
        return []

    def truths(self) -> dict[str, Truth]:
        """Components that hold the true value of the reward, or of one of its components."""
        return {}

    def opinions(self) -> dict[str, float]:
        """Components that each judge the whole completion, with their thresholds: how often they disagree is
        reported."""
        return {}


def validate(grader: Any) -> GraderSpec:
    """Parse a grader's description. Raises an `InvalidRequest` that names the field. Executes no user code.

    Paths in the result are absolute, so that its `model_dump()` means the same in every process of this machine.
    """
    if not isinstance(grader, Mapping):
        raise InvalidRequest("a grader is an object with a 'type' and a 'name'", param="grader")
    kind = grader.get("type")
    if not isinstance(kind, str) or kind not in SPEC_TYPES:
        known = ", ".join(sorted(SPEC_TYPES))
        raise InvalidRequest(f"there is no grader of type {kind!r}; known types: {known}", param="grader.type")
    try:
        return SPEC_TYPES[kind].model_validate(dict(grader))
    except ValidationError as errors:
        raise _invalid(errors) from None


def _invalid(errors: ValidationError) -> InvalidRequest:
    faults = []
    for error in errors.errors(include_url=False, include_context=False):
        field = ".".join(["grader", *map(str, error["loc"])])
        faults.append((field, error["msg"].removeprefix("Value error, ")))
    return InvalidRequest("; ".join(f"{field}: {message}" for field, message in faults), param=faults[0][0])


def _parsed(value: Any) -> GraderSpec:
    if isinstance(value, GraderSpec):
        return value
    try:
        return validate(value)
    except InvalidRequest as fault:
        raise ValueError(fault.message) from None


AnyGrader = Annotated[SerializeAsAny[GraderSpec], BeforeValidator(_parsed)]
"""Type of a field that holds a nested grader."""
