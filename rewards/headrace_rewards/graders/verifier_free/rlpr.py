"""`rlpr`: R = clip(mean_t p(y*_t|x, z) − mean_t p(y*_t|x), 0, 1): what the reasoning adds (RLPR, arXiv 2506.18254).

It is the mean of the probabilities of the reference answer's tokens, not their product, so that one unlikely synonym
does not make R vanish. Groups whose rewards hardly differ are left out: those whose standard deviation is below
`spread_share` times its moving average over the groups that this worker has scored before. Each group counts once in
the average, and is left out, or not, in the same way when it is scored again. The deviation is that of the sampled
completions; a greedy completion beside them is left out with its group.

Off-policy, the learner computes the first mean again. The second, one number per group, stays as measured, and so does
the set of groups that are left out.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from pydantic import Field

from headrace_core.protocols.grader_check import NotApplicable, Outcome, Score
from headrace_core.types.likelihood import Likelihood

from ...protocol import Reward, Sample
from . import base

DECAY = 0.99
"""Decay of the moving average, per group."""
MAX_LEFT_OUT = 4096
"""Number of left-out groups that are remembered, in case they are scored again: more than are ever in flight."""


class RlprSpec(base.LikelihoodSpec):
    """`spread_share` 0 leaves no group out. Without an `evaluation`, evaluations report the same R."""

    type: Literal["rlpr"]
    measures = frozenset({"reference", "reference_alone"})
    kind = "mean"
    spread_share: float = Field(0.5, ge=0, le=10)


class Rlpr:
    """The judge of `rlpr`, with the moving average as its state."""

    def __init__(self, spread_share: float) -> None:
        self._share = spread_share
        self._average: float | None = None
        self._left_out: OrderedDict[int, None] = OrderedDict()

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample; all are `NotApplicable` if the group is left out. Evaluations are never left out."""
        if not samples or any(sample.draw is None for sample in samples):
            return [score_one(sample) for sample in samples]
        outcomes = [score_one(sample) for sample in samples]
        draw = samples[0].draw
        assert draw is not None  # of all
        if not samples[0].again:
            self._left_out.pop(draw.group, None)  # its completions are new
            values = [o.value for o, s in zip(outcomes, samples, strict=True) if isinstance(o, Score) and s.of_group]
            if len(values) > 1 and self._hardly_differ(statistics.pstdev(values)):
                self._left_out[draw.group] = None
                while len(self._left_out) > MAX_LEFT_OUT:
                    self._left_out.popitem(last=False)
        return [NotApplicable()] * len(samples) if draw.group in self._left_out else outcomes

    def _hardly_differ(self, spread: float) -> bool:
        """Whether a group's spread is too small compared with the moving average; adds it to the average."""
        average = self._average
        self._average = spread if average is None else DECAY * average + (1 - DECAY) * spread
        return average is not None and spread < self._share * average


def score_one(sample: Sample) -> Outcome:
    """R of one completion, with the two means as components. If the completion opens no answer, the first is 0."""
    measured = sample.measured
    if measured is None or measured.reference is None or measured.reference_alone is None:
        return base.UNMEASURED
    mean = Likelihood(RlprSpec.kind)
    reasoned, alone = (mean.value(part) for part in (measured.reference, measured.reference_alone))
    added_to = msgspec.structs.replace(mean, offset=alone, low=0.0, high=1.0)
    return base.scored(added_to, measured.reference, 0.0, reasoned=reasoned, alone=alone)


def make(spec: RlprSpec, builder: Any) -> Reward:
    return base.make(Rlpr(spec.spread_share), spec, builder)
