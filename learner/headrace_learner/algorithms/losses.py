"""Policy losses: from log-probabilities of the contributing tokens to a loss for each token.

    π_b      behaviour policy: the engine's, at the version that sampled the token
    π_prox   proximal policy: the centre of the trust region; by default the policy before this step's updates
    π_θ      current policy: the one being updated, and the only one with a gradient

    u = π_θ/π_prox      the effect of this step's updates so far, which the clip limits
    w = π_prox/π_b      staleness: the effect of the versions since sampling, from which `importance` makes a weight

All three are distributions over the whole vocabulary at the sampling temperature: log softmax(logits / temperature). A
job that would sample from a truncated distribution (`top_p`) is refused at submission (decision 0028).

A loss function returns one value per token and never reduces: the averaging over tokens, completions and minibatches is
in the tokens' scales (`batch.Table.scales_N`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The N contributing tokens of a micro-batch. Only `current_N` carries a gradient."""

    current_N: Tensor
    proximal_N: Tensor
    importance_N: Tensor
    """The staleness weight; 0 where it masks the token."""
    advantages_N: Tensor
    sequences_N: Tensor
    """Number of the token's sequence, for sequence-level losses; every sequence is complete."""

    @property
    def ratio_N(self) -> Tensor:
        """u, with gradient."""
        return torch.exp(self.current_N - self.proximal_N)


@dataclass(frozen=True, slots=True)
class Clip:
    """The trust region: 1 − low ≤ u ≤ 1 + high."""

    low: float
    high: float

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(1 - self.low, 1 + self.high)


@dataclass(frozen=True, slots=True)
class LossValues:
    """The result of a loss function, per token. Only `loss_N` carries a gradient."""

    loss_N: Tensor
    clipped_N: Tensor
    """Bool: the clip zeroed this token's gradient or, in CISPO, changed its weight w·u."""


PolicyLoss = Callable[[LossTokens, Clip], LossValues]


def clipped(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −w·min(u·A, clip(u)·A): decoupled PPO (arXiv 2505.24298); plain PPO where π_prox is π_b.

    The clip is around π_prox, so that stale tokens are not clipped because of earlier steps. With one minibatch a step
    and π_prox recomputed, u is 1 and the clip has no effect.
    """
    return _clipped(tokens, clip, tokens.ratio_N)


def gspo(tokens: LossTokens, clip: Clip) -> LossValues:
    """As `clipped`, with u = exp(mean of log π_θ/π_prox over the completion) for each of its tokens (arXiv 2507.18071).

    It equals the paper's loss if every completion has the same weight (`loss_mean` sequence).
    """
    log_ratio_N = row_means(tokens.current_N - tokens.proximal_N, tokens.sequences_N)
    return _clipped(tokens, clip, torch.exp(log_ratio_N))


def unclipped(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −w·u·A, whose gradient is REINFORCE's, −w·u·A·∇log π_θ: u corrects for the step's earlier minibatches.

    For ReMax, RLOO and M2PO, which have no clip.
    """
    ratio_N = tokens.ratio_N
    return LossValues(-tokens.importance_N * ratio_N * tokens.advantages_N, torch.zeros_like(ratio_N, dtype=torch.bool))


def cispo(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −clip(w·u)·A·log π_θ without a gradient through the weight, so that no token loses its gradient
    (arXiv 2506.13585).

    The paper's weight is π_θ/π_b, which equals w·u unless `importance` truncates w. Tokens that the staleness weight
    masks keep weight 0, whatever the lower clip.
    """
    ratio_N = (tokens.importance_N * tokens.ratio_N).detach()
    weight_N = clip(ratio_N).masked_fill(tokens.importance_N == 0, 0.0)
    return LossValues(-weight_N * tokens.advantages_N * tokens.current_N, weight_N != ratio_N)


def clipped_value(values_N: Tensor, before_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """½·max((V − R)², (V_old + clamp(V − V_old, ± clip) − R)²) of each token: PPO's value loss."""
    near_N = before_N + (values_N - before_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (near_N - returns_N) ** 2)


def row_means(column_N: Tensor, rows_N: Tensor) -> Tensor:
    """[N] → [N]: the mean of `column_N` over each token's sequence, which `rows_N` numbers from 0."""
    return row_sums(column_N, rows_N) / row_sums(torch.ones_like(column_N), rows_N)


def row_sums(column_N: Tensor, rows_N: Tensor) -> Tensor:
    """[N] → [N]: the sum of `column_N` over each token's sequence, which `rows_N` numbers from 0."""
    rows = int(rows_N.max()) + 1 if len(rows_N) else 0
    return column_N.new_zeros(rows).index_add(0, rows_N, column_N)[rows_N]


def _clipped(tokens: LossTokens, clip: Clip, ratio_N: Tensor) -> LossValues:
    unclipped_N = ratio_N * tokens.advantages_N
    clipped_N = clip(ratio_N) * tokens.advantages_N
    return LossValues(-tokens.importance_N * torch.minimum(unclipped_N, clipped_N), (clipped_N < unclipped_N).detach())
