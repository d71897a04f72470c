"""`string_check` of OpenAI's graders: 1 if the comparison of two filled templates holds, else 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator

from .spec import GraderSpec
from .templates import Template
from .text_pair import TextPairReward


def _parses(source: str) -> str:
    Template.parse(source)
    return source


TemplateText = Annotated[str, AfterValidator(_parses)]

_OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "neq": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class StringCheckSpec(GraderSpec):
    """OpenAI's fields. `like`: the input contains the reference; `ilike`: the same, ignoring case; `neq` equals
    `ne`."""

    type: Literal["string_check"]
    input: TemplateText
    reference: TemplateText
    operation: Literal["eq", "ne", "neq", "like", "ilike"]


class StringCheck(TextPairReward):
    """1.0 or 0.0 a sample."""

    def __init__(self, spec: StringCheckSpec) -> None:
        super().__init__(spec.input, spec.reference, _OPERATIONS[spec.operation])
