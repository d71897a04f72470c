"""The decoupled loss, token by token, against values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from headrace_learner.losses import Clip, LossTokens, LossValues, decoupled_ppo

CLIP = Clip(low=0.2, high=0.28, importance_cap=2.0)


def one_token(ratio: float, importance: float, advantage: float) -> tuple[LossValues, torch.Tensor]:
    """A token with π_θ/π_prox = ratio and π_prox/π_b = importance; also its current log-probability."""
    proximal = torch.tensor([-1.0])
    current = (proximal + math.log(ratio)).requires_grad_()
    zero = torch.zeros(1, dtype=torch.int64)
    tokens = LossTokens(current, proximal, proximal - math.log(importance), torch.tensor([advantage]), zero, zero)
    return decoupled_ppo(tokens, CLIP), current


@pytest.mark.parametrize(
    ("ratio", "importance", "advantage", "loss", "gradient"),
    [
        (1.0, 1.0, 2.0, -2.0, -2.0),  # on-policy: ∂ℓ/∂log π = −A
        (1.1, 1.5, 2.0, -3.3, -3.3),  # inside the clip: −w·u·A, and so its gradient
        (1.5, 1.0, 2.0, -2.56, 0.0),  # beyond 1 + high, rewarded: clipped at 1.28
        (1.5, 1.0, -2.0, 3.0, 3.0),  # beyond 1 + high, punished: min keeps the worse, unclipped
        (0.5, 1.0, -2.0, 1.6, 0.0),  # below 1 − low, punished: clipped at 0.8
        (0.5, 1.0, 2.0, -1.0, -1.0),  # below 1 − low, rewarded: unclipped
        (1.0, 9.0, 1.0, -2.0, -2.0),  # the staleness weight is capped
    ],
)
def test_one_token(ratio: float, importance: float, advantage: float, loss: float, gradient: float) -> None:
    values, current = one_token(ratio, importance, advantage)
    values.loss_N.sum().backward()
    assert values.loss_N.item() == pytest.approx(loss, rel=1e-5)
    assert current.grad is not None
    assert current.grad.item() == pytest.approx(gradient, rel=1e-5)
    assert values.clipped_N.item() is (gradient == 0.0)
    assert values.importance_N.item() == pytest.approx(min(importance, 2.0), rel=1e-5)
    assert values.extra["capped_share"].item() == float(importance > 2.0)
