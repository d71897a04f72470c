"""`label_model` of OpenAI's graders: a model gives each completion one of several labels, of which some pass."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Failure, Outcome, Score

from .model_judge import JudgeSpec, ModelGrader


class LabelModelSpec(JudgeSpec):
    """OpenAI's fields, and those of `JudgeSpec`."""

    type: Literal["label_model"]
    labels: tuple[str, ...] = Field(min_length=1)
    passing_labels: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = sorted(set(self.passing_labels) - set(self.labels))
        if unknown:
            raise ValueError(f"passing_labels are among labels; {', '.join(unknown)} is not")
        return self


class LabelModel(ModelGrader[str]):
    """Scores 1 for a passing label, 0 for any other."""

    def __init__(self, spec: LabelModelSpec, rules: RewardPermissions) -> None:
        """Raises `InvalidRequest` if the operator has configured no judge."""
        self._labels = frozenset(spec.labels)
        self._passing = frozenset(spec.passing_labels)
        schema = {"type": "string", "enum": list(dict.fromkeys(spec.labels))}
        super().__init__(spec, rules, str, schema)

    def outcome(self, result: str) -> Outcome:
        """`Failure("invalid_value")` for a label that is not among `labels`."""
        if result not in self._labels:
            return Failure("invalid_value", f"the judge's label '{self.quoted(result)}' is none of the labels")
        return Score(float(result in self._passing))
