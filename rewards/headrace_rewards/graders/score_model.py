"""`score_model` of OpenAI's graders: a model gives each completion a number within a range."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import MAX_SCORE, Failure, Outcome, Score

from .model_judge import JudgeSpec, ModelGrader


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not -MAX_SCORE <= low < high <= MAX_SCORE:
        raise ValueError(f"a range is two numbers from -{MAX_SCORE:g} to {MAX_SCORE:g}, the lower one first")
    return bounds


class ScoreModelSpec(JudgeSpec):
    """OpenAI's fields, and those of `JudgeSpec`."""

    type: Literal["score_model"]
    range: Annotated[tuple[float, float], AfterValidator(_ordered)] = (0.0, 1.0)

    def middle(self) -> float:
        """The middle of the range."""
        return (self.range[0] + self.range[1]) / 2


class ScoreModel(ModelGrader[float]):
    """The judge's number is the score, without scaling to the range."""

    def __init__(self, spec: ScoreModelSpec, rules: RewardPermissions) -> None:
        """Raises `InvalidRequest` if the operator has configured no judge."""
        self._low, self._high = spec.range
        schema = {"type": "number", "minimum": self._low, "maximum": self._high}
        super().__init__(spec, rules, float, schema, lowest=self._low)

    def outcome(self, result: float) -> Outcome:
        """`Failure("invalid_value")` for a number outside the range."""
        if not self._low <= result <= self._high:
            return Failure("invalid_value", f"the judge's {result:g} is outside of {self._low:g} to {self._high:g}")
        return Score(result)
