"""The staleness weight: the importance weight that corrects for the policy versions between sampling and this update.

w = π_prox/π_b, by the setting `importance`:

    truncate        min(w, cap): bounds the variance, biased towards the behaviour policy (AReaL, arXiv 2505.24298)
    mask            w inside [1/cap, cap], else 0: tokens far off policy are left out
    second_moment   w, but 0 for the tokens with the largest (log w)², until the mean of the rest is within a bound; it
                    considers only tokens on which a trust region acts: A > 0 and w > 1, or A < 0 and w < 1
                    (M2PO, arXiv 2510.01161; there π_θ/π_b in each minibatch, here π_prox/π_b once a step)
    none            1: the plain estimator, biased by staleness

By `importance_level`, the ratio is that of the token; that of its completion, the product over its contributing tokens;
or the completion's geometric mean, which does not depend on length (GSPO, arXiv 2507.18071).

A reference answer is given, not sampled, so that its tokens have no ratio of their own. Older versions chose the
reasoning before it. So the weight of answer tokens is 1 at token level, and at the other levels that of the reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters

from .losses import row_sums


@dataclass(frozen=True, slots=True)
class StalenessWeights:
    """The weights of N tokens; neither column carries a gradient."""

    importance_N: Tensor
    cut_N: Tensor
    """Bool: the weight was capped, or the token was masked."""


def staleness_weights(
    proximal_N: Tensor,
    behaviour_N: Tensor,
    completions_N: Tensor,
    answer_N: Tensor,
    settings: Hyperparameters,
    advantages_N: Tensor,
) -> StalenessWeights:
    """The weights of N tokens of complete completions, which `completions_N` numbers. `answer_N`: bool, answer tokens.

    For `second_moment`, the N tokens must be all tokens of the step.
    """
    log_N = (proximal_N - behaviour_N).detach().masked_fill(answer_N, 0.0)
    if settings.importance_level != "token":
        log_N = row_sums(log_N, completions_N)
    if settings.importance_level == "geometric":
        log_N = log_N / row_sums((~answer_N).to(log_N), completions_N).clamp(min=1)
    weight_N, cap = torch.exp(log_N), settings.importance_cap
    match settings.importance:
        case "truncate":
            return StalenessWeights(weight_N.clamp(max=cap), weight_N > cap)
        case "mask":
            cut_N = (weight_N > cap) | (weight_N < 1 / cap)
        case "second_moment":
            cut_N = torch.zeros_like(log_N, dtype=torch.bool)
            acted_on_N = log_N * advantages_N > 0
            cut_N[acted_on_N] = _beyond(log_N[acted_on_N].square(), settings.second_moment)
        case "none":
            return StalenessWeights(torch.ones_like(weight_N), torch.zeros_like(weight_N, dtype=torch.bool))
    return StalenessWeights(weight_N.masked_fill(cut_N, 0.0), cut_N)


def _beyond(squares_N: Tensor, bound: float) -> Tensor:
    """[N] bool: the smallest set of largest squares whose removal brings the mean of the rest to at most `bound`."""
    ascending, order = squares_N.double().sort(stable=True)
    means = ascending.cumsum(0) / torch.arange(1, len(ascending) + 1, device=squares_N.device)
    cut_N = torch.ones_like(squares_N, dtype=torch.bool)
    cut_N[order[: int((means <= bound).sum())]] = False  # the running means of an ascending sequence ascend
    return cut_N
