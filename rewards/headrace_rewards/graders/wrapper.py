"""A reward that changes what another one scores, in training and nowhere else.

Held for all of them: a sample without a `draw` (an evaluation, a grader that is tried) keeps the held reward's outcome;
so does a sample that has no score, because a failure and `NotApplicable` are no numbers to change.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from headrace_core.protocols.grader_check import Failure, Outcome, Score

from ..protocol import Need, Reward, Sample, SampleKey
from .spec import AnyGrader, GraderSpec, Truth


class WrappingSpec(GraderSpec):
    """`grader` is the one whose scores are changed; what it needs measured is what the whole needs."""

    grader: AnyGrader

    def needs(self) -> frozenset[Need]:
        return self.grader.needs()

    def middle(self) -> float:
        return self.grader.high_from()

    def truths(self) -> dict[str, Truth]:
        return self.grader.truths()

    def opinions(self) -> dict[str, float]:
        """The held grader's: its components stay as they are."""
        return self.grader.opinions()


class WrappingReward(ABC):
    """Starts, asks and closes the held reward; `_changed` says what becomes of a score."""

    def __init__(self, held: Reward) -> None:
        self._held = held

    async def start(self) -> None:
        await self._held.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order; see `Reward`."""
        outcomes = await self._held.score(samples)
        return [self._outcome(sample, outcome) for sample, outcome in zip(samples, outcomes, strict=True)]

    async def close(self) -> None:
        await self._held.close()

    @abstractmethod
    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        """What a completion drawn for training gets instead of `score`."""

    @abstractmethod
    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        """(derivative of what it gets by `score`, whether that is the same for every score)."""

    def _outcome(self, sample: Sample, outcome: Outcome) -> Outcome:
        if sample.draw is None or not isinstance(outcome, Score):
            return outcome
        changed = self._changed(sample, sample.draw, outcome)
        if not isinstance(changed, Score):
            return changed
        held = outcome.likelihood
        likelihood = None if held is None else held.within(*self._slope(sample.draw, outcome))
        kept = {"sample_fault": outcome.sample_fault, "notes": outcome.notes, "likelihood": likelihood}
        return msgspec.structs.replace(changed, **kept)


def finite(value: float, components: dict[str, float]) -> Outcome:
    """A score, or the failure of a value that arithmetic has carried beyond a float."""
    if math.isfinite(value):
        return Score(value, components)
    return Failure("invalid_value", f"the changed score is {value}, which is not a finite number")
