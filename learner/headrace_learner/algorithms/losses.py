"""Policy losses: log-probabilities of the contributing tokens in, a loss for each token out.

    π_b      behaviour: what the token was sampled from, by the engine, at the token's own policy version
    π_prox   proximal: the centre of the trust region; by default the policy before this step's updates
    π_θ      current: the policy being updated; the only one with a gradient

    u = π_θ/π_prox      what this step's updates did so far: what a clip looks at
    w = π_prox/π_b      staleness: what versions since the sampling did; `importance` makes the weight of it

All three are of the distribution at the sampling temperature, over the whole vocabulary: log softmax(logits /
temperature). A job that would sample from a part of it (`top_p`) is refused at submission (decision 0028).

A loss function returns one value a token and never reduces: how tokens, completions and minibatches are averaged is a
scale of each token that the batch knows (`batch.MiniBatch`).
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
    """The staleness weight, 0 where the token is masked for it."""
    advantages_N: Tensor
    sequences_N: Tensor
    """Which sequence the token belongs to, for losses over sequences; whole sequences are here."""

    @property
    def ratio_N(self) -> Tensor:
        """u, with its gradient."""
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
    """What a loss function found, token by token. Only `loss_N` carries a gradient."""

    loss_N: Tensor
    clipped_N: Tensor
    """Bool: the clip cut this token's gradient off, or, in CISPO, changed its weight w·u."""


PolicyLoss = Callable[[LossTokens, Clip], LossValues]


def clipped(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −w·min(u·A, clip(u)·A): decoupled PPO (arXiv 2505.24298); plain PPO where π_prox is π_b.

    The clip is around π_prox, so a stale token is not clipped away for what earlier steps did. With one minibatch a
    step and π_prox recomputed, u is 1 where the gradient is taken and the clip is idle.
    """
    return _clipped(tokens, clip, tokens.ratio_N)


def gspo(tokens: LossTokens, clip: Clip) -> LossValues:
    """As `clipped`, with u = exp(mean of log π_θ/π_prox over the completion) for every token of it (arXiv 2507.18071).

    The gradient of one token spreads over the completion by that mean: with each completion counted alike
    (`loss_mean` sequence) it is the paper's.
    """
    log_ratio_N = row_means(tokens.current_N - tokens.proximal_N, tokens.sequences_N)
    return _clipped(tokens, clip, torch.exp(log_ratio_N))


def unclipped(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −w·u·A, the gradient of REINFORCE, −w·u·A·∇log π_θ, whatever the step's earlier minibatches did.

    For ReMax, RLOO and M2PO, which have no clip. Where u is 1, it is −w·A·∇log π_θ.
    """
    ratio_N = tokens.ratio_N
    return LossValues(-tokens.importance_N * ratio_N * tokens.advantages_N, torch.zeros_like(ratio_N, dtype=torch.bool))


def cispo(tokens: LossTokens, clip: Clip) -> LossValues:
    """ℓ = −clip(w·u)·A·log π_θ, no gradient through the weight: no token is cut off (arXiv 2506.13585).

    The paper's weight is of π_θ/π_b, which w·u is while `importance` cuts nothing: clipped once, and at most 1 + high.
    A token that is masked for its staleness has weight 0, whatever the lower clip.
    """
    ratio_N = (tokens.importance_N * tokens.ratio_N).detach()
    weight_N = clip(ratio_N).masked_fill(tokens.importance_N == 0, 0.0)
    return LossValues(-weight_N * tokens.advantages_N * tokens.current_N, weight_N != ratio_N)


def clipped_value(values_N: Tensor, before_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """½·max((V − R)², (V_old + clamp(V − V_old, ± clip) − R)²) of each token: PPO's value loss."""
    near_N = before_N + (values_N - before_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (near_N - returns_N) ** 2)


def row_means(column_N: Tensor, rows_N: Tensor) -> Tensor:
    """[N] → [N]: each token gets the mean over its own sequence."""
    return row_sums(column_N, rows_N) / row_sums(torch.ones_like(column_N), rows_N)


def row_sums(column_N: Tensor, rows_N: Tensor) -> Tensor:
    """[N] → [N]: each token gets the sum over its own sequence."""
    rows = int(rows_N.max()) + 1 if len(rows_N) else 0
    return column_N.new_zeros(rows).index_add(0, rows_N, column_N)[rows_N]


def _clipped(tokens: LossTokens, clip: Clip, ratio_N: Tensor) -> LossValues:
    free_N = ratio_N * tokens.advantages_N
    bound_N = clip(ratio_N) * tokens.advantages_N
    return LossValues(-tokens.importance_N * torch.minimum(free_N, bound_N), (bound_N < free_N).detach())
