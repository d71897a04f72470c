"""Estimates of the divergence against the divergence itself, by exact sums over a small vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace_core.config.learning_settings import KlEstimator
from headrace_learner.algorithms.kl import kl_estimate

REFERENCE = torch.log_softmax(torch.tensor([0.3, -1.0, 0.8, 0.0, -0.4], dtype=torch.float64), 0)


def logits() -> Tensor:
    return torch.tensor([0.9, 0.1, -0.3, 0.2, -1.1], dtype=torch.float64, requires_grad=True)


def divergence(policy: Tensor) -> Tensor:
    """KL(π ‖ π_ref) in nats."""
    return (policy.exp() * (policy - REFERENCE)).sum()


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.10653066)])  # e^−½ − 1 + ½
def test_by_hand(estimator: KlEstimator, expected: float) -> None:
    found = kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    policy = torch.log_softmax(logits(), 0).detach()
    expected = divergence(policy).item()
    found = {e: (policy.exp() * kl_estimate(policy, REFERENCE, e)).sum().item() for e in ("k1", "k2", "k3")}
    assert found["k1"] == pytest.approx(expected, rel=1e-12)
    assert found["k3"] == pytest.approx(expected, rel=1e-12)
    assert abs(found["k2"] - expected) > 0.001
    assert kl_estimate(policy, REFERENCE, "k1").min() < 0
    assert kl_estimate(policy, REFERENCE, "k3").min() >= 0


def mean_gradient(estimator: KlEstimator) -> Tensor:
    """What a loss of sampled tokens has for a gradient, in expectation: no gradient through the sampling."""
    given = logits()
    policy = torch.log_softmax(given, 0)
    (found,) = torch.autograd.grad((policy.detach().exp() * kl_estimate(policy, REFERENCE, estimator)).sum(), given)
    return found


def test_as_a_loss_k2_has_the_divergences_gradient() -> None:
    given = logits()
    (expected,) = torch.autograd.grad(divergence(torch.log_softmax(given, 0)), given)
    torch.testing.assert_close(mean_gradient("k2"), expected)
    assert expected.abs().max() > 0.1


def test_as_a_loss_k1_teaches_nothing() -> None:
    """Why it is refused there."""
    torch.testing.assert_close(mean_gradient("k1"), torch.zeros(5, dtype=torch.float64))


def test_as_a_loss_k3_has_the_gradient_of_the_other_divergence() -> None:
    """KL(π_ref ‖ π): near the reference policy both are the same."""
    given = logits()
    policy = torch.log_softmax(given, 0)
    (expected,) = torch.autograd.grad((REFERENCE.exp() * (REFERENCE - policy)).sum(), given)
    torch.testing.assert_close(mean_gradient("k3"), expected)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_of_equal_policies_there_is_none(estimator: KlEstimator) -> None:
    assert not kl_estimate(REFERENCE, REFERENCE.clone(), estimator).any()
