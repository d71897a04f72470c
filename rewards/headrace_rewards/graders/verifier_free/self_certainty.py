"""`self_certainty`: R = mean_t KL(U ‖ π_t), how far the policy is from knowing nothing (Intuitor, arXiv 2505.19590).

U is the uniform distribution over the vocabulary, π_t the distribution that token t was sampled from; in nats.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from headrace_core.protocols.grader_check import Outcome, Score

from ...protocol import PolicyMeasurements, Reward
from . import base


class SelfCertaintySpec(base.VerifierFreeSpec):
    """Without an `evaluation`, evaluations report the same R of greedy completions."""

    type: Literal["self_certainty"]
    measures = frozenset({"distribution"})


def certainty(measured: PolicyMeasurements) -> Outcome:
    """The reward of one completion, in nats."""
    if not measured.certainties:
        return base.UNMEASURED
    return Score(math.fsum(measured.certainties) / len(measured.certainties))


def make(spec: SelfCertaintySpec, builder: Any) -> Reward:
    return base.make(base.of_each(certainty), spec, builder)
