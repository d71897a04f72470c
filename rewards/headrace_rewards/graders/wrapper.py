"""Base of the rewards that change the scores of another reward, in training only.

Invariants: a sample without a `draw` (an evaluation, a grader check) keeps the wrapped reward's outcome; so does a
sample without a score (a failure, or `NotApplicable`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from headrace_core.protocols.grader_check import Failure, Outcome, Score, score_fault

from ..protocol import Need, Reward, Sample, SampleKey
from .spec import AnyGrader, GraderSpec, Truth


class WrappingSpec(GraderSpec):
    """`grader`: the grader whose scores are changed."""

    grader: AnyGrader

    def needs(self) -> frozenset[Need]:
        return self.grader.needs()

    def middle(self) -> float:
        return self.grader.high_from()

    def truths(self) -> dict[str, Truth]:
        return self.grader.truths()

    def opinions(self) -> dict[str, float]:
        """The wrapped grader's opinions: its components are unchanged."""
        return self.grader.opinions()


class WrappingReward(ABC):
    """Starts, calls and closes the wrapped reward; `_changed` of a subclass changes a score."""

    def __init__(self, held: Reward) -> None:
        self._wrapped = held

    async def start(self) -> None:
        await self._wrapped.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order; see `Reward`."""
        outcomes = await self._wrapped.score(samples)
        return [self._outcome(sample, outcome) for sample, outcome in zip(samples, outcomes, strict=True)]

    async def close(self) -> None:
        await self._wrapped.close()

    @abstractmethod
    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        """The outcome of a completion in training, in place of the wrapped reward's `score`."""

    @abstractmethod
    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        """(derivative of the changed score with respect to `score`, whether it is the same for every score)."""

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


def score_of(value: float, components: dict[str, float]) -> Outcome:
    """A score; a `Failure` if the value cannot be one."""
    if (fault := score_fault(value)) is None:
        return Score(value, components)
    return Failure("invalid_value", f"the changed score is {value}, {fault}")
