"""`entropy`: R = −mean_t H(π_t), the negative mean entropy of the distributions that the tokens were sampled from
(RENT, arXiv 2505.22660). In nats; 0 for a policy that is always certain.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from headrace_core.protocols.grader_check import Outcome, Score

from ...protocol import PolicyMeasurements, Reward
from . import base


class EntropySpec(base.VerifierFreeSpec):
    """Without an `evaluation`, evaluations report the same R of greedy completions."""

    type: Literal["entropy"]
    measures = frozenset({"distribution"})


def negative_entropy(measured: PolicyMeasurements) -> Outcome:
    """The reward of one completion, in nats."""
    if not measured.entropies:
        return base.UNMEASURED
    return Score(-math.fsum(measured.entropies) / len(measured.entropies))


def make(spec: EntropySpec, builder: Any) -> Reward:
    return base.make(base.of_each(negative_entropy), spec, builder)
