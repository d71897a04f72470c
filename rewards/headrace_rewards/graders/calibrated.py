"""`calibrated`: corrects the low scores of an unreliable reward model by how the completion reasons.

A score that is wrongly low is the most harmful noise. To a score below a threshold τ, α times the reasoning pattern
reward is added, up to 1 in total; a score of τ or more is unchanged (Lv et al., arXiv 2505.22653: τ = 0.5, α = 0.1).
This applies to training only: an evaluation shows the reward model's own scores.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headrace_core.protocols.grader_check import Outcome, Score

from ..protocol import Reward, Sample, SampleKey
from .reasoning_pattern import ReasoningPattern, ReasoningPatternSpec
from .wrapper import WrappingReward, WrappingSpec


class CalibratedSpec(WrappingSpec):
    """`grader` is the reward model, with scores from 0 to 1."""

    type: Literal["calibrated"]
    pattern: ReasoningPatternSpec = ReasoningPatternSpec(type="reasoning_pattern", name="pattern")
    threshold: float = Field(default=0.5, ge=0, le=1)
    alpha: float = Field(default=0.1, ge=0, le=1)


class Calibrated(WrappingReward):
    """Adds the components `uncalibrated` (the wrapped reward's score) and `pattern` (the reasoning pattern reward)."""

    def __init__(self, spec: CalibratedSpec, held: Reward) -> None:
        super().__init__(held)
        self._spec = spec
        self._pattern = ReasoningPattern(spec.pattern)

    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        pattern, value = self._pattern.of(sample.output_text).value, score.value
        if value < self._spec.threshold:
            value = min(1.0, value + self._spec.alpha * pattern)
        return Score(value, {"uncalibrated": score.value, "pattern": pattern, **score.components})

    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        """The slope is 1, but not affine: what is added changes at the threshold."""
        return 1.0, False
