"""What every grader's description has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from headrace_core.errors import InvalidRequest

from ..protocol import Need

MAX_NAME = 256


class Truth(NamedTuple):
    """A component that says what the reward, or a part of it, should have been."""

    high_from: float
    """From here on the component counts as high."""
    part: str = ""
    """The component that it is the truth of; empty: of the reward itself."""
    part_high_from: float = 0.0
    """From here on that component counts as high; of the reward itself, `GraderSpec.high_from` says it."""

    def within(self, name: str, high_from: float) -> Truth:
        """The same in a grader of graders, whose component `name` is the grader that knows it; a value of `high_from`
        and more of that component counts as high."""
        part = f"{name}.{self.part}" if self.part else name
        return Truth(self.high_from, part, self.part_high_from if self.part else high_from)


SPEC_TYPES: dict[str, type[GraderSpec]] = {}
"""Name of a type → its description. Each is entered as its module is imported; `registry` imports them all."""


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

    def truths(self) -> dict[str, Truth]:
        """Components that say what the reward, or one of its parts, should have been."""
        return {}

    def opinions(self) -> dict[str, float]:
        """Components that are each a judgement of the whole completion, with the same value; they may disagree."""
        return {}


def validate(grader: Any) -> GraderSpec:
    """The parsed description; raises `InvalidRequest` that names the field. Executes nothing of the user's.

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
"""A field that holds another grader."""
