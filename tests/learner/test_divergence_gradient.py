"""The divergence's part in the gradient: linear in its coefficient, and that of KL(π ‖ π_ref), by exact enumeration.

Enumerated are completions of one token: all 32, in all pairs, each pair a group whose loss weight is the chance of
drawing it, so that the sum over groups is the mean over draws; and those of a small table, of one token and of two.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from headrace_core.config.learning_settings import KlEstimator
from headrace_core.types.trajectory import Completion, Group, Role
from headrace_learner.algorithms.advantages import (
    AdvantageFunction,
    AdvantageInputs,
    Trajectory,
    dr_grpo,
    grpo,
    remax,
    rloo,
)
from headrace_learner.algorithms.kl import kl_estimate
from headrace_learner.algorithms.presets import IMPLEMENTATIONS
from headrace_learner.training.trainer import Trainer

from .cases import VOCAB, assert_close, disturb, hyperparameters, random_group, recorded

Make = Callable[..., Trainer]
PROMPT = [3, 1, 4]
COEFFICIENTS = [1e-4, 1e-2, 1.0, 100.0]


def gradient(trainer: Trainer, groups: Sequence[Group]) -> list[Tensor]:
    """Of one step's loss."""
    updates = recorded(trainer.optimizers["policy"], move=False)
    trainer.step(groups, 0)
    return updates[0].gradients if updates else []


def norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).double().norm())


# ── linear in the coefficient ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("place", "estimator"), [("reward", "k1"), ("loss", "k2"), ("loss", "k3+")])
@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_the_gradient_of_equal_rewards_is_linear_in_the_coefficient(
    make_trainer: Make, name: str, place: str, estimator: str
) -> None:
    """The critic's values are what its head makes of nothing: zero, so that equal rewards leave it nothing to say."""
    groups = [random_group(i, rewards=[1.0] * 4, greedy=1.0) for i in range(2)]

    def of(coefficient: float) -> list[Tensor]:
        trainer = make_trainer(
            **{"algorithm": name, "batch_size": 2, "group_size": 4, "minibatches": 1, "max_grad_norm": 1e9},
            **{"kl_coefficient": coefficient, "kl_in": place, "kl_estimator": estimator, "max_staleness": 0},
        )
        disturb(trainer.policy.model)
        return gradient(trainer, groups)

    whole = of(1.0)
    assert norm(whole) > 1e-3
    for coefficient in COEFFICIENTS:
        assert_close([g / coefficient for g in of(coefficient)], whole, 2e-3)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_the_coefficient_adds_the_same_whatever_the_rewards(make_trainer: Make, name: str) -> None:
    equal, apart = (
        [random_group(i, rewards=rewards, greedy=0.5) for i in range(2)]
        for rewards in ([0.5] * 4, [0.0, 1.0, 3.0, -2.0])
    )

    def of(groups: Sequence[Group], coefficient: float) -> list[Tensor]:
        trainer = make_trainer(
            **{"algorithm": name, "batch_size": 2, "group_size": 4, "minibatches": 1, "max_grad_norm": 1e9},
            **{"kl_coefficient": coefficient, "kl_in": "reward", "max_staleness": 0, "importance": "truncate"},
        )
        disturb(trainer.policy.model)
        return gradient(trainer, groups)

    of_equal, of_apart = (
        [with_it - without for with_it, without in zip(of(groups, 1.0), of(groups, 1e-9), strict=True)]
        for groups in (equal, apart)
    )
    assert_close(of_equal, of_apart, 1e-4)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_completion_is_charged_for_its_tokens_that_are_too_old(make_trainer: Make, name: str) -> None:
    """All but its last are; alone among equals, it would have been favoured for being old."""
    groups = [random_group(i, (5,), rewards=[1.0] * 4) for i in range(2)]

    def of(old: bool) -> list[float]:
        for group in groups:
            group.completions[0].versions[:-1] = 0 if old else 5
        trainer = make_trainer(
            algorithm=name, batch_size=2, kl_coefficient=1.0, max_staleness=1, learning_rate=1e-12, proximal="recompute"
        )
        disturb(trainer.policy.model)
        result = trainer.step(groups, 5)
        return [float(result.advantages_N[s.rows][-1]) for samples in result.samples for s in samples]

    assert of(old=True) == pytest.approx(of(old=False), abs=1e-5)


# ── the divergence's own gradient, by enumeration ────────────────────────────────────────────────────────────────────


def divergence_gradients(policy: Tensor, base: Tensor, parameters: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """∇KL(π ‖ π_ref) and ∇KL(π_ref ‖ π), of [V] log-probabilities."""
    of = {"to_base": (policy.exp() * (policy - base)).sum(), "from_base": (base.exp() * (base - policy)).sum()}
    return {name: list(torch.autograd.grad(kl, parameters, retain_graph=True)) for name, kl in of.items()}


def projection(found: Sequence[Tensor], onto: Sequence[Tensor]) -> float:
    """How much of `onto` is in `found`: 1 for the same vector."""
    a, b = (torch.cat([t.flatten() for t in tensors]).double() for tensors in (found, onto))
    return float(a @ b / (b @ b))


@pytest.mark.parametrize(
    ("place", "estimator", "direction"),
    [
        *[("reward", "k1", "to_base"), ("loss", "k2", "to_base"), ("loss", "k3", "from_base")],
        *[("loss", "k1+", "to_base"), ("loss", "k3+", "to_base")],
    ],
)
def test_the_mean_gradient_over_all_tokens_is_the_divergences(
    make_trainer: Make, place: str, estimator: str, direction: str
) -> None:
    settings = {"algorithm": "rloo", "batch_size": VOCAB**2, "group_size": 2, "max_tokens": 1, "max_grad_norm": 1e9}
    trainer = make_trainer(**settings, kl_coefficient=0.3, kl_in=place, kl_estimator=estimator)
    disturb(trainer.policy.model)
    base = AutoModelForCausalLM.from_pretrained(trainer.policy.folder, dtype=torch.float32)
    ids, model = torch.tensor([PROMPT]), copy.deepcopy(trainer.policy.model)
    every, reference = (torch.log_softmax(m(input_ids=ids).logits[0, -1], -1) for m in (model, base))
    expected = divergence_gradients(every, reference.detach(), list(model.parameters()))
    chance = every.exp().tolist()

    def completion(token: int, weight: float) -> Completion:
        return Completion(
            token_ids=np.array([token], np.int32),
            logprobs=every[token : token + 1].detach().numpy(),
            versions=np.zeros(1, np.int32),
            roles=np.array([Role.COMPLETION], np.uint8),
            loss_weights=np.array([weight], np.float32),
            finish_reason="stop",
            reward=0.0,
        )

    pairs = [(a, b, chance[a] * chance[b]) for a in range(VOCAB) for b in range(VOCAB)]
    groups = [
        Group(i, 1, 0, 0, np.array(PROMPT, np.int32), (completion(a, drawn), completion(b, drawn)))
        for i, (a, b, drawn) in enumerate(pairs)
    ]
    # The divisor is completions × max_tokens; the gradient is of the loss, which the divergence is part of.
    found = [g * len(pairs) / 0.3 for g in gradient(trainer, groups)]
    assert_close(found, expected[direction], 1e-4)
    other = {"to_base": "from_base", "from_base": "to_base"}[direction]
    assert projection(found, expected[direction]) == pytest.approx(1, abs=1e-4)
    assert projection(found, expected[other]) != pytest.approx(1, abs=1e-3)


def in_the_reward(estimator: KlEstimator, shift: float) -> float:
    """Projection of the mean policy gradient of a reward −estimate on −∇KL(π ‖ π_ref), π_ref moved by `shift`."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    logits = (base + shift * torch.randn(VOCAB, generator=generator, dtype=torch.float64)).requires_grad_()
    policy, reference = torch.log_softmax(logits, -1), torch.log_softmax(base, -1)
    estimates = kl_estimate(policy.detach(), reference, estimator)
    policy_gradient = torch.autograd.grad(
        (policy.exp().detach() * -estimates * policy).sum(), logits, retain_graph=True
    )
    exact = divergence_gradients(policy, reference, [logits])["to_base"]
    return projection(policy_gradient, [-g for g in exact])


def test_why_the_reward_takes_k1_alone() -> None:
    for shift in (0.05, 0.5, 1.0):
        assert in_the_reward("k1", shift) == pytest.approx(1)
        assert not 0.9 < in_the_reward("k2", shift) < 1.1
        assert not 0.9 < in_the_reward("k3", shift) < 1.1
    assert abs(in_the_reward("k2", 0.05)) < 0.1, "small shifts leave next to nothing of the divergence's gradient"


@pytest.mark.parametrize("estimator", ["k2", "k3", "k1+", "k3+"])
def test_other_estimators_in_the_reward_are_refused(estimator: str) -> None:
    with pytest.raises(ValueError, match="set kl_in to loss, or kl_estimator to k1"):
        hyperparameters(kl_coefficient=0.1, kl_in="reward", kl_estimator=estimator)
    assert hyperparameters(kl_coefficient=0, kl_estimator=estimator).kl_estimator == estimator


# ── of completions of several tokens, by enumeration of a policy that is a table ─────────────────────────────────────

WORDS, END = 3, 0
COMPLETIONS = [(END,), *((first, second) for first in (1, 2) for second in range(WORDS))]
"""All of at most two tokens; a second one depends on the first."""


def table(seed: int) -> Tensor:
    """[WORDS + 1, WORDS] logits: row 0 of the first token, row 1 + n of the second, after token n."""
    return torch.randn(WORDS + 1, WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_logprobs(logits: Tensor, completion: tuple[int, ...]) -> list[Tensor]:
    rows = (0, *(1 + token for token in completion[:-1]))
    return [torch.log_softmax(logits[row], -1)[token] for row, token in zip(rows, completion, strict=True)]


@pytest.mark.parametrize(("function", "share"), [(grpo, 0.5), (dr_grpo, 0.5), (rloo, 1.0), (remax, 1.0)])
def test_penalties_lead_down_the_divergence_of_whole_completions(function: AdvantageFunction, share: float) -> None:
    """A mean over all pairs of completions. Where a completion counts in its own baseline, a half of it is left."""
    policy, base = table(0).requires_grad_(), table(1)
    each = [token_logprobs(policy, completion) for completion in COMPLETIONS]
    apart = [
        [a - b for a, b in zip(own, token_logprobs(base, completion), strict=True)]
        for own, completion in zip(each, COMPLETIONS, strict=True)
    ]
    chances = [torch.stack(own).sum().exp() for own in each]
    divergence = torch.stack([p * torch.stack(d).sum() for p, d in zip(chances, apart, strict=True)]).sum()
    objective = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(range(len(COMPLETIONS)), repeat=2):
        first = slice(0, len(each[a]))
        second = slice(first.stop, first.stop + len(each[b]))
        group = [Trajectory(1.0, first, greedy=1.0), Trajectory(1.0, second, greedy=1.0)]
        penalties_N = np.array([d.item() for d in (*apart[a], *apart[b])])
        advantages_N = torch.from_numpy(function(AdvantageInputs([group], penalties_N)).advantages_N)
        objective = objective + (chances[a] * chances[b]).detach() * (advantages_N @ torch.stack([*each[a], *each[b]]))
    (found,) = torch.autograd.grad(objective / 2, policy, retain_graph=True)
    (wanted,) = torch.autograd.grad(-divergence, policy)
    torch.testing.assert_close(found, share * wanted)
