"""`noisy`: makes another reward wrong, missing or slow on purpose, to see how robust training is.

The most harmful noise flips a whole question: every completion of its group gets the flipped reward (Lv et al., "The
Climb Carves Wisdom Deeper Than the Summit", arXiv 2505.22653). Invariants:

* the noise of a completion follows from `seed` and its `SampleKey` alone: the same completion scored again gets the
  same noise, in any process and in any order; those of different groups, completions and kinds are independent;
* the component `clean` holds the value before the noise;
* only training is noisy: a sample without a `draw` (an evaluation, a grader check) is unchanged.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from headrace_core.config.exact_model import ExactModel
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score

from ..protocol import Reward, Sample, SampleKey
from .spec import Truth
from .wrapper import WrappingReward, WrappingSpec, score_of

CLEAN = "clean"
"""The component with the value before the noise; for nested noise, before both."""

Share = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]


class FlipRates(ExactModel):
    """Asymmetric flip rates: probability that a low reward becomes high (`up`), and a high one low (`down`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: Share = 0.0
    down: Share = 0.0


class MeanDelay(ExactModel):
    """Exponentially distributed delay: mostly short, sometimes long (at most 37 times the mean). `mean` in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float = Field(gt=0, le=60)


class TwoValuedSpec(WrappingSpec):
    """A wrapper around a reward with two values, `low` and `high`."""

    low: Bound = 0.0
    high: Bound = 1.0

    def middle(self) -> float:
        """The mean of `low` and `high`."""
        return (self.low + self.high) / 2

    @model_validator(mode="after")
    def _in_order(self) -> TwoValuedSpec:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


class NoisySpec(TwoValuedSpec):
    """All noise is off by default. A flip turns a value into `low + high − value`."""

    type: Literal["noisy"]
    flip: Share | FlipRates = 0.0
    per: Literal["question", "completion"] = "question"
    """What is flipped together: all completions of a prompt, or each completion alone."""
    gaussian: float = Field(default=0.0, ge=0, le=1e6)
    """Standard deviation of the Gaussian noise that is added to each completion's reward."""
    delay: Annotated[float, Field(ge=0, le=600)] | MeanDelay = 0.0
    """Additional seconds of each completion's reward; the delays of a group run at the same time."""
    missing: Share = 0.0
    """Share of completions for which the reward abstains."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    def truths(self) -> dict[str, Truth]:
        """The value before the noise."""
        return {**self.grader.truths(), CLEAN: Truth(self.middle())}


class Noisy(WrappingReward):
    """Adds the noise of `spec` to the wrapped reward."""

    def __init__(self, spec: NoisySpec, held: Reward) -> None:
        super().__init__(held)
        self._spec = spec
        self._rates = rates(spec.flip)
        self._closed = asyncio.Event()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, in order, after the longest delay of the samples."""
        if await self._closed_within(max((self._delay(s.draw) for s in samples), default=0.0)):
            return [Failure("unavailable", "the reward was closed")] * len(samples)
        return await super().score(samples)

    async def close(self) -> None:
        """End the delays, and close the wrapped reward. Idempotent."""
        self._closed.set()
        await super().close()

    def _changed(self, sample: Sample, draw: SampleKey, score: Score) -> Outcome:
        spec = self._spec
        if self._uniform("missing", draw.group, draw.completion) < spec.missing:
            return NotApplicable()
        value = self._flipped(score.value, draw)
        if spec.gaussian:
            value += spec.gaussian * NormalDist().inv_cdf(self._uniform("gaussian", draw.group, draw.completion))
        return score_of(value, {CLEAN: score.value, **score.components})

    def _flipped(self, value: float, draw: SampleKey) -> float:
        """The value, flipped or not. A value half-way between low and high equals its flip."""
        return self._spec.low + self._spec.high - value if self._flips(value, draw) else value

    def _flips(self, value: float, draw: SampleKey) -> bool:
        rate = self._rates.up if value < (self._spec.low + self._spec.high) / 2 else self._rates.down
        of = (draw.group,) if self._spec.per == "question" else (draw.group, draw.completion)
        return self._uniform("flip", *of) < rate

    def _slope(self, draw: SampleKey, score: Score) -> tuple[float, bool]:
        """-1 for a flipped score, else 1: whether it is flipped does not depend on the exact score."""
        return (-1.0 if self._flips(score.value, draw) else 1.0), True

    def _delay(self, draw: SampleKey | None) -> float:
        delay = self._spec.delay
        if draw is None or not delay:
            return 0.0
        if isinstance(delay, MeanDelay):
            return -delay.mean * math.log(self._uniform("delay", draw.group, draw.completion))
        return delay

    async def _closed_within(self, seconds: float) -> bool:
        if seconds:
            try:
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
            except TimeoutError:
                return False
        return self._closed.is_set()

    def _uniform(self, *of: str | int) -> float:
        """A number in the open interval (0, 1), uniform over the arguments. It is a hash, but not Python's `hash`,
        which differs between processes."""
        digest = blake2b(":".join(map(str, (self._spec.seed, *of))).encode(), digest_size=8).digest()
        return ((int.from_bytes(digest, "little") >> 12) + 0.5) / 2**52


def rates(flip: float | FlipRates) -> FlipRates:
    """The rates for both directions; a single number applies to both."""
    return flip if isinstance(flip, FlipRates) else FlipRates(up=flip, down=flip)
