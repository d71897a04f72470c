"""`string_check` of OpenAI's graders: 1 where two resolved templates compare as asked, else 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator

from ..protocol import Outcome, Sample, Score
from .spec import GraderSpec
from .templates import MissingPath, Template, outcome_of, rendered


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
    """OpenAI's fields. `like`: input contains reference; `ilike`: without regard to case; `neq` is `ne`."""

    type: Literal["string_check"]
    input: TemplateText
    reference: TemplateText
    operation: Literal["eq", "ne", "neq", "like", "ilike"]


class StringCheck:
    """Needs no process: nothing of the user's is executed."""

    def __init__(self, spec: StringCheckSpec) -> None:
        self._input = Template.parse(spec.input)
        self._reference = Template.parse(spec.reference)
        self._holds = _OPERATIONS[spec.operation]

    async def start(self) -> None:
        """Nothing to start."""

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """1.0 or 0.0 a sample; see `outcome_of` for one whose templates cannot be filled."""
        return [self._score(sample) for sample in samples]

    async def close(self) -> None:
        """Nothing to close."""

    def _score(self, sample: Sample) -> Outcome:
        try:
            return Score(float(self._holds(*rendered(sample, self._input, self._reference))))
        except MissingPath as missing:
            return outcome_of(missing)
