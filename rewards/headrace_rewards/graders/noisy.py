"""`noisy`: another reward made wrong, missing or slow on purpose, to see how training bears it.

Noise for a whole question is what hurts: every completion of its group gets the flipped reward (Lv et al., "The Climb
Carves Wisdom Deeper Than the Summit", arXiv 2505.22653). Held here:

* the noise of a completion follows from `seed` and its `SampleKey` alone: the same completion scored again gets the
same
  noise, in any process and in any order; those of different groups, completions and kinds are independent;
* the value before the noise stands beside it, as the component `clean`;
* nothing without a `draw` is touched: no evaluation, no grader that is tried.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score

from ..protocol import Reward, Sample, SampleKey
from .spec import Truth
from .wrapper import WrappingReward, WrappingSpec

CLEAN = "clean"
"""The component that holds the value before the noise; of one noise around another, the value before both."""

Share = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]


class FlipRates(BaseModel):
    """Asymmetric: how often a low reward is raised, and how often a high one is lowered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: Share = 0.0
    down: Share = 0.0


class MeanDelay(BaseModel):
    """Exponential: most are short, some are long (at most 37 times the mean)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float = Field(gt=0, le=60)


class TwoValuedSpec(WrappingSpec):
    """Of a reward with two values, `low` and `high`."""

    low: Bound = 0.0
    high: Bound = 1.0

    def middle(self) -> float:
        """Half-way between the two."""
        return (self.low + self.high) / 2

    @model_validator(mode="after")
    def _in_order(self) -> TwoValuedSpec:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


class NoisySpec(TwoValuedSpec):
    """All noise is off by default. A flip makes `low + high − value` of a value."""

    type: Literal["noisy"]
    flip: Share | FlipRates = 0.0
    per: Literal["question", "completion"] = "question"
    """What one flip is for: all completions of a prompt, or one completion."""
    gaussian: float = Field(default=0.0, ge=0, le=1e6)
    """Standard deviation of what is added to each completion's reward."""
    delay: Annotated[float, Field(ge=0, le=600)] | MeanDelay = 0.0
    """Seconds that each completion's reward takes longer; those of a group pass at once."""
    missing: Share = 0.0
    """Share of completions of which the reward has no opinion."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    def truths(self) -> dict[str, Truth]:
        """What it was before the noise."""
        return {**self.grader.truths(), CLEAN: Truth(self.middle())}


class Noisy(WrappingReward):
    """Adds the noise of `spec` to the held reward."""

    def __init__(self, spec: NoisySpec, held: Reward) -> None:
        super().__init__(held)
        self._spec = spec
        self._rates = rates(spec.flip)
        self._closed = asyncio.Event()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order, when the longest of their delays has passed."""
        if await self._closed_within(max((self._delay(s.draw) for s in samples), default=0.0)):
            return [Failure("unavailable", "the reward was closed")] * len(samples)
        return await super().score(samples)

    async def close(self) -> None:
        """End the delays and close the held reward. Idempotent."""
        self._closed.set()
        await super().close()

    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        spec = self._spec
        if self._chance("missing", draw.group, draw.completion) < spec.missing:
            return NotApplicable()
        value = self._flipped(score.value, draw)
        if spec.gaussian:
            value += spec.gaussian * NormalDist().inv_cdf(self._chance("gaussian", draw.group, draw.completion))
        return Score(value, {CLEAN: score.value, **score.components})

    def _flipped(self, value: float, draw: SampleKey) -> float:
        """A value half-way between low and high is its own flip, whatever the rates."""
        return self._spec.low + self._spec.high - value if self._flips(value, draw) else value

    def _flips(self, value: float, draw: SampleKey) -> bool:
        rate = self._rates.up if value < (self._spec.low + self._spec.high) / 2 else self._rates.down
        of = (draw.group,) if self._spec.per == "question" else (draw.group, draw.completion)
        return self._chance("flip", *of) < rate

    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        """A flip stays one, whatever the score."""
        return (-1.0 if self._flips(score.value, draw) else 1.0), True

    def _delay(self, draw: SampleKey | None) -> float:
        delay = self._spec.delay
        if draw is None or not delay:
            return 0.0
        if isinstance(delay, MeanDelay):
            return -delay.mean * math.log(self._chance("delay", draw.group, draw.completion))
        return delay

    async def _closed_within(self, seconds: float) -> bool:
        if seconds:
            try:
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
            except TimeoutError:
                return False
        return self._closed.is_set()

    def _chance(self, *of: str | int) -> float:
        """Uniform in (0, 1), never an end: a hash, because Python's own differs between processes."""
        digest = blake2b(":".join(map(str, (self._spec.seed, *of))).encode(), digest_size=8).digest()
        return ((int.from_bytes(digest, "little") >> 12) + 0.5) / 2**52


def rates(flip: float | FlipRates) -> FlipRates:
    """One rate is for both directions."""
    return flip if isinstance(flip, FlipRates) else FlipRates(up=flip, down=flip)
