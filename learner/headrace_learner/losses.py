"""Policy losses: log-probabilities of the contributing tokens in, a loss for each token out.

    π_b      behaviour: what the token was sampled from, by the engine, at the token's own policy version
    π_prox   proximal: the policy as it was when the batch arrived, before this step's updates
    π_θ      current: the policy being updated; the only one with a gradient

All three are of the distribution at the sampling temperature: log softmax(logits / temperature). With top_p < 1 the
engine samples from the renormalised nucleus while π_prox and π_θ stay untruncated, because the nucleus itself changes
with the weights. π_prox/π_b is then below 1 by the nucleus' mass, even on-policy: the right importance weight inside
the nucleus, blind outside it.

A loss function returns one value a token and never reduces: the trainer divides the sum of all micro-batches of a
minibatch by the number of its tokens. (A token mean over the minibatch, as in DAPO, arXiv 2503.14476. GRPO's original
mean over each completion first gives the tokens of long wrong answers less weight than those of short ones, which
teaches a policy to be wrong at length: arXiv 2503.20783.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The N contributing tokens of a micro-batch. Only `current_N` carries a gradient."""

    current_N: Tensor
    proximal_N: Tensor
    behaviour_N: Tensor
    advantages_N: Tensor
    ages_N: Tensor
    """Policy versions between sampling and this update; none is above max_staleness."""
    rows_N: Tensor
    """Which sequence of the micro-batch the token belongs to, for losses over sequences."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Bounds of the trust region and of the staleness weight."""

    low: float
    high: float
    importance_cap: float


@dataclass(frozen=True, slots=True)
class LossValues:
    """What a loss function found, token by token. Only `loss_N` carries a gradient."""

    loss_N: Tensor
    importance_N: Tensor
    """The staleness weight that was used: its spread is the effective sample size."""
    clipped_N: Tensor
    """Bool: the clip cut this token's gradient off."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """[N] each; the mean over the step's tokens is shown under this name in `StepMetrics.extra`."""


PolicyLoss = Callable[[LossTokens, Clip], LossValues]


def decoupled_ppo(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −w · min(u·A, clip(u, 1 − low, 1 + high)·A), u = π_θ/π_prox, w = min(π_prox/π_b, cap) (arXiv 2505.24298).

    The clip is around π_prox, so a stale token is not clipped away for what earlier updates did; w corrects for them
    and carries no gradient. With one minibatch a step, u is 1 where the gradient is taken and the clip is idle.
    """
    uncapped_N = torch.exp(tokens.proximal_N - tokens.behaviour_N).detach()
    importance_N = uncapped_N.clamp(max=clip.importance_cap)
    ratio_N = torch.exp(tokens.current_N - tokens.proximal_N.detach())
    free_N = ratio_N * tokens.advantages_N
    bound_N = ratio_N.clamp(1 - clip.low, 1 + clip.high) * tokens.advantages_N
    return LossValues(
        loss_N=-importance_N * torch.minimum(free_N, bound_N),
        importance_N=importance_N,
        clipped_N=(bound_N < free_N).detach(),
        extra={"capped_share": (uncapped_N > clip.importance_cap).float()},
    )
