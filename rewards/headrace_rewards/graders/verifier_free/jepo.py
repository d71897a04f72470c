"""`jepo`: R = log π(y*|x, z), a lower bound of log π(y*|x) by Jensen's inequality (arXiv 2503.19618).

    ∇J = E_z[ A ∇log π(z|x) + ∇log π(y*|x, z) ],   A = R − mean of the others' R

The reference answer's tokens have weight 1: they are trained as in supervised learning. An answer can be arbitrarily
unlikely, and a completion that opens no answer has no likelihood at all, so R is clipped at `floor` from below (which
the paper does not do).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from headrace_core.protocols.grader_check import MAX_SCORE, Outcome
from headrace_core.types.likelihood import Likelihood

from ...protocol import PolicyMeasurements, Reward
from . import base


class LogLikelihoodSpec(base.LikelihoodSpec):
    """`floor`: the lowest reward, in nats, which a completion that opens no answer gets."""

    kind = "log"
    floor: float = Field(-20.0, ge=-MAX_SCORE, lt=0)


class JepoSpec(LogLikelihoodSpec):
    """Without an `evaluation`, evaluations report the same log-likelihood."""

    type: Literal["jepo"]


def make(spec: LogLikelihoodSpec, builder: Any) -> Reward:
    def bound(measured: PolicyMeasurements) -> Outcome:
        logprobs = measured.reference
        if logprobs is None:
            return base.UNMEASURED
        return base.scored(Likelihood(spec.kind, low=spec.floor), logprobs, spec.floor)

    return base.make(base.of_each(bound), spec, builder)
