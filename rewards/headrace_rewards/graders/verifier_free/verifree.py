"""`verifree`: R = π(y*|x, z), the likelihood of the reference answer y* after the reasoning z (arXiv 2505.21493).

    ∇J = E_z[ A ∇log π(z|x) + R ∇log π(y*|x, z) ],   A = R − mean of the others' R

In expectation this equals a reward of 1 for exactly y* and 0 for any other answer, and its variance is not larger: the
expectation over answers is computed instead of sampled. The learner computes A (`algorithm` rloo); R is the weight of
y*'s tokens in the loss.
"""

from __future__ import annotations

from typing import Any, Literal

from headrace_core.protocols.grader_check import Outcome
from headrace_core.types.likelihood import Likelihood

from ...protocol import PolicyMeasurements, Reward
from . import base


class VeriFreeSpec(base.LikelihoodSpec):
    """Without an `evaluation`, evaluations report the same likelihood."""

    type: Literal["verifree"]
    kind = "product"


def likelihood(measured: PolicyMeasurements) -> Outcome:
    """R, the product of the probabilities of y*'s tokens; 0 if the completion opened no answer."""
    logprobs = measured.reference
    if logprobs is None:
        return base.UNMEASURED
    return base.scored(Likelihood(VeriFreeSpec.kind), logprobs, 0.0)


def make(spec: VeriFreeSpec, builder: Any) -> Reward:
    return base.make(base.of_each(likelihood), spec, builder)
