"""How the likelihood of a reference answer enters a reward, so that the learner can recompute the reward.

A verifier-free reward is a function of the log-probabilities ℓ of the reference answer y* after the reasoning z. Those
depend on the policy: off policy, the rollout worker computed them with an older one than the policy being trained. The
learner corrects the reward R that it was given:

    R_new = R + coefficient · (f(ℓ_new) − f(ℓ_old)),    f(ℓ) = clip(kind(ℓ) − offset, low, high)

    kind      kind(ℓ)                weight of y*'s tokens in the loss: ∂f/∂ℓ_t              rewards
    product   exp(Σ ℓ_t), π(y*|x,z)  coefficient · exp(Σ ℓ_t)                                verifree
    log       Σ ℓ_t, log π(y*|x,z)   coefficient, also below `low`, where f is constant      jepo, latro
    mean      mean_t exp(ℓ_t)        0: y* is not trained on                                 rlpr
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["product", "log", "mean"]


class Likelihood(msgspec.Struct, array_like=True, frozen=True):
    """The dependence of one completion's reward on ℓ: natural log-probabilities, one for each token of y*.

    Only completions that begin an answer have one.
    """

    kind: Kind
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    coefficient: float = 1.0
    """∂R/∂f at the given reward."""
    affine: bool = True
    """Whether R is affine in f, so that R_new is exact. If not, the learner does not recompute R."""

    def value(self, logprobs: Sequence[float]) -> float:
        """f(ℓ), see the module."""
        match self.kind:
            case "product":
                value = math.exp(math.fsum(logprobs))
            case "log":
                value = math.fsum(logprobs)
            case "mean":
                value = math.fsum(map(math.exp, logprobs)) / max(1, len(logprobs))
        return min(max(value - self.offset, self.low), self.high)

    def answer_weight(self, logprobs: Sequence[float]) -> float:
        """Weight of each of y*'s tokens in the loss, where reasoning tokens have their advantage; see the module."""
        match self.kind:
            case "product":
                return self.coefficient * math.exp(math.fsum(logprobs))
            case "log":
                return self.coefficient
            case "mean":
                return 0.0

    @property
    def trains_the_answer(self) -> bool:
        """Whether y*'s tokens can contribute to the gradient."""
        return self.kind != "mean" and self.coefficient != 0

    def within(self, slope: float, affine: bool) -> Likelihood:
        """The dependence of an outer reward on ℓ, whose derivative by this reward is `slope` (`affine`: everywhere)."""
        return msgspec.structs.replace(self, coefficient=self.coefficient * slope, affine=self.affine and affine)
