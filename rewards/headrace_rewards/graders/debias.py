"""`debias`: corrects a reward with known flip rates, so that its expectation over the flips is the true reward.

Let a reward r be 0 or 1, flipped from 0 to 1 with probability p01 and from 1 to 0 with probability p10. The expectation
of (r − p01) / (1 − p01 − p10) is the reward before the flips; with one rate p it is (r − p) / (1 − 2p) (Natarajan et
al., "Learning with Noisy Labels", NeurIPS 2013). Single rewards lie outside the range 0 to 1. Their variance grows as
p01 + p10 approaches 1, where r holds no information any more.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from headrace_core.protocols.grader_check import Outcome, Score

from ..protocol import Reward, Sample, SampleKey
from .noisy import FlipRates, Share, TwoValuedSpec, rates
from .wrapper import WrappingReward, score_of


class DebiasSpec(TwoValuedSpec):
    """`flip`: the known rates, in the same form as in `noisy`."""

    type: Literal["debias"]
    flip: Share | FlipRates

    @model_validator(mode="after")
    def _something_is_left(self) -> DebiasSpec:
        known = rates(self.flip)
        if known.up + known.down >= 1:
            raise ValueError(
                f"flips of {known.up:g} up and {known.down:g} down leave nothing of the reward to recover: "
                "their sum must be below 1 (one rate: below 0.5)"
            )
        return self


class Debias(WrappingReward):
    """Corrects the wrapped reward for its flips."""

    def __init__(self, spec: DebiasSpec, held: Reward) -> None:
        super().__init__(held)
        known = rates(spec.flip)
        self._low, self._range = spec.low, spec.high - spec.low
        self._up, self._left = known.up, 1 - known.up - known.down

    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        share = (score.value - self._low) / self._range
        return score_of(self._low + self._range * (share - self._up) / self._left, score.components)

    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        return 1 / self._left, True
