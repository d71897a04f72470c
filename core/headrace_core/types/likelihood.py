"""How the likelihood of a reference answer enters a reward, so that the learner can compute the reward anew.

A reward without a verifier is a function of the log-probabilities ℓ of the reference answer y* after the reasoning z.
They are of a policy, and off-policy of an older one than the policy that is trained. With R the reward as it was given,

    R_new = R + coefficient · (f(ℓ_new) − f(ℓ_old)),    f(ℓ) = clip(kind(ℓ) − offset, low, high)

    kind      of ℓ                   what y*'s tokens are weighted with: ∂f/∂ℓ_t             reward
    product   exp(Σ ℓ_t), π(y*|x,z)  coefficient · exp(Σ ℓ_t)                                verifree
    log       Σ ℓ_t, log π(y*|x,z)   coefficient, also beyond `low`, where f stands still    jepo, latro
    mean      mean_t exp(ℓ_t)        0: y* is not trained                                    rlpr
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["product", "log", "mean"]


class Likelihood(msgspec.Struct, array_like=True, frozen=True):
    """Of one completion that opened its answer; log-probabilities are natural, one a token of y*."""

    kind: Kind
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    coefficient: float = 1.0
    """∂R/∂f, where the reward was given."""
    affine: bool = True
    """R is affine in f, so that R_new is exact; where it is not, R stays as it was given."""

    def value(self, logprobs: Sequence[float]) -> float:
        """The function of the likelihood that the reward is."""
        match self.kind:
            case "product":
                found = math.exp(math.fsum(logprobs))
            case "log":
                found = math.fsum(logprobs)
            case "mean":
                found = math.fsum(map(math.exp, logprobs)) / max(1, len(logprobs))
        return min(max(found - self.offset, self.low), self.high)

    def answer_weight(self, logprobs: Sequence[float]) -> float:
        """What each of y*'s tokens weighs in the loss beside the reasoning's advantage; see the module."""
        match self.kind:
            case "product":
                return self.coefficient * math.exp(math.fsum(logprobs))
            case "log":
                return self.coefficient
            case "mean":
                return 0.0

    @property
    def trains_the_answer(self) -> bool:
        """Whether y*'s tokens can have a gradient."""
        return self.kind != "mean" and self.coefficient != 0

    def within(self, slope: float, affine: bool) -> Likelihood:
        """Of a reward that has `slope` for its derivative by this one; `affine`: it has it everywhere."""
        return msgspec.structs.replace(self, coefficient=self.coefficient * slope, affine=self.affine and affine)
