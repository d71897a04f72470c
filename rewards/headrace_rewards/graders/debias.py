"""`debias`: known flip rates undone in the mean: the reward that training sees is right on average over the flips.

For a reward r of two values, 0 and 1, that is raised with chance p01 and lowered with chance p10, the expectation of
(r − p01) / (1 − p01 − p10) is the reward before the flips; with one rate p, (r − p) / (1 − 2p) (Natarajan et al.,
"Learning with Noisy Labels", NeurIPS 2013). Single rewards lie outside 0 to 1, and vary the more the nearer the rates
add up to 1, where nothing is left to undo.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from headrace_core.protocols.grader_check import Outcome, Score

from ..protocol import Reward, Sample, SampleKey
from .noisy import FlipRates, Share, TwoValuedSpec, rates
from .wrapper import WrappingReward, finite


class DebiasSpec(TwoValuedSpec):
    """`flip` as in `noisy`."""

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
    """Undoes the flips of the held reward."""

    def __init__(self, spec: DebiasSpec, held: Reward) -> None:
        super().__init__(held)
        known = rates(spec.flip)
        self._low, self._range = spec.low, spec.high - spec.low
        self._up, self._left = known.up, 1 - known.up - known.down

    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        share = (score.value - self._low) / self._range
        return finite(self._low + self._range * (share - self._up) / self._left, score.components)

    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        return 1 / self._left, True
