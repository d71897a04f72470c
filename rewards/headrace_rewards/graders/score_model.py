"""`score_model` of OpenAI's graders: a model gives each completion a number within a range."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator

from headrace_core.config.reward_permissions import RewardPermissions

from ..protocol import Failure, Outcome, Sample, Score, each
from .model_judge import JudgeSpec, ModelJudge


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("a range is two finite numbers, the lower one first")
    return bounds


class ScoreModelSpec(JudgeSpec):
    """OpenAI's fields, and those of `JudgeSpec`."""

    type: Literal["score_model"]
    range: Annotated[tuple[float, float], AfterValidator(_ordered)] = (0.0, 1.0)

    def middle(self) -> float:
        """Of the range."""
        return (self.range[0] + self.range[1]) / 2


class ScoreModel:
    """The number is the score as it is: it is not scaled to the range."""

    def __init__(self, spec: ScoreModelSpec, rules: RewardPermissions) -> None:
        """Raises `InvalidRequest` where the operator named no judge."""
        self._low, self._high = spec.range
        schema = {"type": "number", "minimum": self._low, "maximum": self._high}
        self._judge = ModelJudge(spec, rules, float, schema, lowest=self._low)

    async def start(self) -> None:
        """Asks nothing yet."""
        await self._judge.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One question a sample, all at once; a number outside the range is `Failure("invalid_value")`."""
        return await each(samples, lambda wanted: asyncio.gather(*map(self._score, wanted)))

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """See `ModelJudge.rehearse`."""
        return await self._judge.rehearse(samples)

    async def close(self) -> None:
        """Questions in flight end with `unavailable`. Idempotent."""
        await self._judge.close()

    async def _score(self, sample: Sample) -> Outcome:
        result = await self._judge.ask(sample)
        if not isinstance(result, float):
            return result
        if not self._low <= result <= self._high:
            return Failure("invalid_value", f"the judge's {result:g} is outside of {self._low:g} to {self._high:g}")
        return Score(result)
