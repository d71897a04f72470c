"""`latro`: R = log π(y*|x, z) − β log(π(z|x) / π_ref(z|x)) (LaTRO, arXiv 2411.04282).

The first part is `jepo`'s, with weight 1 on the reference answer's tokens. The second is the learner's KL penalty on
the reasoning, as part of the reward: `kl_coefficient` is β. With `kl_coefficient` 0 this is `jepo`.
"""

from __future__ import annotations

from typing import Literal

from .jepo import LogLikelihoodSpec, make

__all__ = ["LatroSpec", "make"]


class LatroSpec(LogLikelihoodSpec):
    """Without an `evaluation`, evaluations report the log-likelihood, without the penalty."""

    type: Literal["latro"]
