"""Each loss, token by token, against values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from headrace_learner.algorithms.losses import (
    Clip,
    LossTokens,
    LossValues,
    PolicyLoss,
    cispo,
    clipped,
    clipped_value,
    gspo,
    row_means,
    row_sums,
    unclipped,
)

CLIP = Clip(low=0.2, high=0.28)
LOSSES = [clipped, gspo, unclipped, cispo]


def evaluated(
    loss: PolicyLoss,
    ratios: list[float],
    importance: list[float],
    advantages: list[float],
    rows: list[int] | None = None,
    weights: list[float] | None = None,
) -> tuple[LossValues, list[float]]:
    """Tokens of π_prox = e⁻¹ with π_θ/π_prox as given; with ∂(Σ weight·ℓ)/∂ log π_θ."""
    proximal = torch.full((len(ratios),), -1.0)
    current = (proximal + torch.tensor(ratios).log()).requires_grad_()
    tokens = LossTokens(
        current,
        proximal,
        torch.tensor(importance),
        torch.tensor(advantages),
        torch.arange(len(ratios)) if rows is None else torch.tensor(rows),
    )
    values = loss(tokens, CLIP)
    scales = torch.ones(len(ratios)) if weights is None else torch.tensor(weights)
    (gradient,) = torch.autograd.grad((values.loss_N * scales).sum(), current)
    return values, gradient.tolist()


@pytest.mark.parametrize("loss", [clipped, gspo])
@pytest.mark.parametrize(
    ("ratio", "importance", "advantage", "value", "gradient"),
    [
        (1.0, 1.0, 2.0, -2.0, -2.0),  # on-policy: ∂ℓ/∂log π = −A
        (1.1, 1.5, 2.0, -3.3, -3.3),  # inside the clip: −w·u·A, and so its gradient
        (1.5, 1.0, 2.0, -2.56, 0.0),  # beyond 1 + high, rewarded: clipped at 1.28
        (1.5, 1.0, -2.0, 3.0, 3.0),  # beyond 1 + high, punished: min keeps the worse, unclipped
        (0.5, 1.0, -2.0, 1.6, 0.0),  # below 1 − low, punished: clipped at 0.8
        (0.5, 1.0, 2.0, -1.0, -1.0),  # below 1 − low, rewarded: unclipped
        (0.5, 3.0, -2.0, 4.8, 0.0),  # the staleness weight is outside of the clip
    ],
)
def test_a_clipped_token(
    loss: PolicyLoss, ratio: float, importance: float, advantage: float, value: float, gradient: float
) -> None:
    """A completion of one token has that token's ratio for its own."""
    values, gradients = evaluated(loss, [ratio], [importance], [advantage])
    assert values.loss_N.item() == pytest.approx(value, rel=1e-5)
    assert gradients == pytest.approx([gradient], rel=1e-5)
    assert values.clipped_N.item() is (gradient == 0.0)


def test_clipped_takes_each_token_by_itself() -> None:
    values, gradients = evaluated(clipped, [1.5, 1.0, 0.5], [1.0, 2.0, 1.0], [1.0, 1.0, -1.0], rows=[0, 0, 0])
    assert values.loss_N.tolist() == pytest.approx([-1.28, -2.0, 0.8])
    assert gradients == pytest.approx([0.0, -2.0, 0.0])
    assert values.clipped_N.tolist() == [True, False, True]


def test_gspo_takes_the_geometric_mean_of_the_completion() -> None:
    """Ratios 4 and 1/4 are 1 together; 1.2 and 1.2·1.44 are 1.44, beyond the clip; rows need not be neighbours."""
    values, gradients = evaluated(
        gspo, [4.0, 1.2, 0.25, 1.728], [1.0, 1.0, 1.0, 1.0], [1.0, 3.0, 1.0, 3.0], rows=[0, 1, 0, 1]
    )
    assert values.loss_N.tolist() == pytest.approx([-1.0, -3.84, -1.0, -3.84])
    assert gradients == pytest.approx([-1.0, 0.0, -1.0, 0.0], abs=1e-6)  # each of 2 tokens' losses moves each by ½
    assert values.clipped_N.tolist() == [False, True, False, True]


def test_gspos_gradient_spreads_over_the_completion() -> None:
    """ℓ = −w·s·A, s = (u_1·u_2·u_3)^⅓: ∂(Σ weight·ℓ)/∂log π_t = −s·A·(Σ weight·w)/3 for every t."""
    ratios, s = [1.1, 0.9, 1.0], (1.1 * 0.9) ** (1 / 3)
    values, gradients = evaluated(gspo, ratios, [2.0] * 3, [1.5] * 3, rows=[0, 0, 0], weights=[0.1, 0.2, 0.6])
    assert values.loss_N.tolist() == pytest.approx([-2 * s * 1.5] * 3)
    assert gradients == pytest.approx([-s * 1.5 * 2 * 0.9 / 3] * 3)


def test_unclipped_goes_on_beyond_any_clip() -> None:
    values, gradients = evaluated(unclipped, [1.0, 3.0, 0.1], [1.0, 2.0, 0.5], [2.0, 1.0, -4.0], rows=[0, 0, 1])
    assert values.loss_N.tolist() == pytest.approx([-2.0, -6.0, 0.2])
    assert gradients == pytest.approx([-2.0, -6.0, 0.2])
    assert not values.clipped_N.any()


def test_cispo_clips_one_weight_and_cuts_no_gradient() -> None:
    """ℓ = −clip(w·u)·A·log π, its gradient −clip(w·u)·A: staleness and this step's updates share one clip."""
    ratios, importance = [1.1, 1.5, 0.5, 0.5, 5.0], [1.0, 2.0, 1.0, 2.0, 5.0]
    values, gradients = evaluated(cispo, ratios, importance, [2.0, 1.0, -3.0, 1.0, 1.0], rows=[0, 0, 1, 1, 1])
    logs = [-1 + math.log(u) for u in ratios]
    weights = [-1.1 * 2, -1.28, 0.8 * 3, -1.0, -1.28]
    assert values.loss_N.tolist() == pytest.approx([w * log for w, log in zip(weights, logs, strict=True)])
    assert gradients == pytest.approx(weights)
    assert values.clipped_N.tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_masked_token_has_no_loss_and_no_gradient(loss: PolicyLoss) -> None:
    values, gradients = evaluated(loss, [1.1, 0.95], [0.0, 1.0], [2.0, 1.0])
    assert (values.loss_N[0].item(), gradients[0]) == (0.0, 0.0)
    assert gradients[1] < 0


@pytest.mark.parametrize("loss", LOSSES)
def test_where_the_policy_has_not_moved_all_losses_have_the_gradient_of_reinforce(loss: PolicyLoss) -> None:
    """−w·A, of each token; for GSPO its mean over the completion, here of equal ones; in CISPO's clip, too."""
    values, gradients = evaluated(loss, [1.0] * 4, [0.9, 0.9, 1.2, 1.2], [3.0, 3.0, -1.0, -1.0], rows=[0, 0, 1, 1])
    assert gradients == pytest.approx([-2.7, -2.7, 1.2, 1.2])
    assert not values.clipped_N.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tokens_are_no_loss(loss: PolicyLoss) -> None:
    """What an idle rank computes: a sum that a gradient can flow through."""
    none = torch.zeros(0, requires_grad=True)
    values = loss(
        LossTokens(none, none.detach(), none.detach(), none.detach(), torch.zeros(0, dtype=torch.int64)), CLIP
    )
    values.loss_N.sum().backward()
    assert values.loss_N.shape == (0,)


@pytest.mark.parametrize(
    ("value", "before", "target", "loss", "gradient"),
    [
        (1.0, 1.0, 3.0, 2.0, -2.0),  # unmoved: ½·(V − R)², gradient V − R
        (1.1, 1.0, 3.0, 1.805, -1.9),  # within ± 0.2
        (1.5, 1.0, 3.0, 1.62, 0.0),  # moved further towards R than the clip allows: counted as 1.2, no gradient
        (0.5, 1.0, 3.0, 3.125, -2.5),  # moved away from R: the worse of both, with its gradient
        (1.5, 1.0, 1.1, 0.08, 0.4),  # past R and past the clip: 0.4²/2 > 0.1²/2
    ],
)
def test_a_value(value: float, before: float, target: float, loss: float, gradient: float) -> None:
    values = torch.tensor([value], requires_grad=True)
    found = clipped_value(values, torch.tensor([before]), torch.tensor([target]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_sums_and_means_of_rows() -> None:
    column, rows = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0, 2, 0, 2])  # no token of row 1
    assert row_sums(column, rows).tolist() == [4.0, 7.0, 4.0, 7.0]
    assert row_means(column, rows).tolist() == [2.0, 3.5, 2.0, 3.5]
    nothing: Tensor = row_means(column[:0], rows[:0])
    assert nothing.shape == (0,)
