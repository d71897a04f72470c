"""`label_model` of OpenAI's graders: a model gives each completion one of some labels; some of them pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from headrace_core.config.reward_permissions import RewardPermissions

from ..protocol import Failure, Outcome, Sample, Score, each
from .model_judge import JudgeSpec, ModelJudge


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


class LabelModel:
    """1 for a label that passes, 0 for another one."""

    def __init__(self, spec: LabelModelSpec, rules: RewardPermissions) -> None:
        """Raises `InvalidRequest` where the operator named no judge."""
        self._labels = frozenset(spec.labels)
        self._passing = frozenset(spec.passing_labels)
        schema = {"type": "string", "enum": list(dict.fromkeys(spec.labels))}
        self._judge = ModelJudge(spec, rules, str, schema)

    async def start(self) -> None:
        """Asks nothing yet."""
        await self._judge.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One question a sample, all at once; a label of the judge's own is `Failure("invalid_value")`."""
        return await each(samples, lambda wanted: asyncio.gather(*map(self._score, wanted)))

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """See `ModelJudge.rehearse`."""
        return await self._judge.rehearse(samples)

    async def close(self) -> None:
        """Questions in flight end with `unavailable`. Idempotent."""
        await self._judge.close()

    async def _score(self, sample: Sample) -> Outcome:
        result = await self._judge.ask(sample)
        if not isinstance(result, str):
            return result
        if result not in self._labels:
            return Failure("invalid_value", f"the judge's label '{self._judge.quoted(result)}' is none of the labels")
        return Score(float(result in self._passing))
