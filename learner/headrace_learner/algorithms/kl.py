"""Estimators of the divergence KL(π ‖ π_ref) from sampled tokens (J. Schulman, "Approximating KL divergence").

With d = log π − log π_ref of a sampled token:

    name      value             expected gradient in the loss
    k1        d                 zero; use it in the reward, where its gradient is that of KL(π ‖ π_ref)
    k2        d²/2              KL(π ‖ π_ref)
    k3        exp(−d) − 1 + d   KL(π_ref ‖ π), the other direction
    k1+, k3+  as k1, as k3      KL(π ‖ π_ref), by the gradient of k2 (straight-through)

In the loss these are gradients of each token's divergence given the tokens before it. In the reward it is the gradient
of the divergence of whole completions, which includes a token's effect on later tokens.

k1 and k3 are unbiased; k3 is never negative, and has low variance where π and π_ref are close. In the reward, only k1
has the gradient of the divergence: the policy gradient of k2 or k3 is that of another quantity, and can lead away from
the base model (arXiv 2506.09477; the tests enumerate it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace_core.config.learning_settings import KlEstimator


def kl_estimate(logprobs_N: Tensor, reference_N: Tensor, estimator: KlEstimator) -> Tensor:
    """[N] estimates in nats from natural log-probabilities; the gradient flows through `logprobs_N`."""
    difference_N = logprobs_N - reference_N
    match estimator:
        case "k1":
            return difference_N
        case "k2":
            return difference_N.square() / 2
        case "k3":
            return torch.exp(-difference_N) - 1 + difference_N
        case "k1+" | "k3+":
            value_N = kl_estimate(logprobs_N.detach(), reference_N, "k1" if estimator == "k1+" else "k3")
            half_square_N = difference_N.square() / 2
            return value_N + half_square_N - half_square_N.detach()
