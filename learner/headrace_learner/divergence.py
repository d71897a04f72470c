"""Estimates of the divergence KL(π ‖ π_ref) from the sampled tokens alone (J. Schulman, "Approximating KL divergence").

With d = log π − log π_ref of a sampled token:

    k1 = d                      unbiased, of high variance, often negative
    k2 = d²/2                   biased, of low variance; as a loss its gradient is the divergence's own
    k3 = exp(−d) − 1 + d        unbiased, never negative, of low variance where π and π_ref are close
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace_core.hyperparameters import KlEstimator


def kl_estimate(logprobs_N: Tensor, reference_N: Tensor, estimator: KlEstimator) -> Tensor:
    """[N] estimates in nats; the gradient flows through `logprobs_N`."""
    difference_N = logprobs_N - reference_N
    match estimator:
        case "k1":
            return difference_N
        case "k2":
            return difference_N.square() / 2
        case "k3":
            return torch.exp(-difference_N) - 1 + difference_N
