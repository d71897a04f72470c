"""Rewards of an older policy's likelihoods: off-policy, the mean gradient is the present policy's, by enumeration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace_core.types.likelihood import Kind, Likelihood
from headrace_core.types.trajectory import Completion, Group, Role
from headrace_learner.algorithms.batch import MiniBatch
from headrace_learner.training.trainer import Trainer

from .cases import VOCAB, answered, disturb, eventful_group, likely, recorded

Make = Callable[..., Trainer]
PROMPT, Y = [3, 1, 4], [15, 9]
SHARE, OFFSET = 0.7, 0.031
OTHER = {"product": 3e-4, "log": 0.3, "mean": 3e-3}
"""The other grader of the reward gives at most so much, for how late in the vocabulary the reasoning is."""
SETTINGS = {
    **{"algorithm": "rloo", "batch_size": VOCAB**2, "group_size": 2, "temperature": 0.7, "max_tokens": 1},
    **{"max_grad_norm": 1e9, "importance_level": "sequence", "importance_cap": 1e6, "max_staleness": 1},
}


def measured(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Log-probabilities [32] of each reasoning, of one token, and [32, 2] of the answer's two tokens after it."""
    ids = torch.tensor([[*PROMPT, z, *Y] for z in range(VOCAB)])
    every = torch.log_softmax(model(input_ids=ids).logits / 0.7, -1)
    at = len(PROMPT)
    return every[0, at - 1], torch.stack([every[:, at, Y[0]], every[:, at + 1, Y[1]]], 1)


def f(kind: Kind, answers: Tensor) -> Tensor:
    """[32] what the reward makes of the likelihood."""
    return {
        "product": lambda: answers.sum(1).exp(),
        "log": lambda: answers.sum(1),
        "mean": lambda: (answers.exp().mean(1) - OFFSET).clamp(0, 1),
    }[kind]()


def others_reward(kind: Kind) -> Tensor:
    """[32]."""
    return OTHER[kind] * torch.arange(VOCAB) / VOCAB


def how(kind: Kind) -> Likelihood:
    bounds: dict[str, Any] = {"offset": OFFSET, "low": 0.0, "high": 1.0} if kind == "mean" else {}
    return Likelihood(kind, coefficient=SHARE, **bounds)


def every_pair(kind: Kind, reasoning: Tensor, answers: Tensor, told: bool) -> list[Group]:
    """Each pair of reasonings a group; loss weights are its chance, so that the sum over groups is a mean over draws.

    Not `told` how the reward follows from the likelihood, the learner has the answer's weight as it was measured.
    """
    likelihood, chance = how(kind), reasoning.exp().tolist()
    rewards = (SHARE * f(kind, answers) + others_reward(kind)).tolist()

    def completion(z: int, other: int) -> Completion:
        drawn = chance[z] * chance[other]
        of_answer = drawn * (1.0 if told else likelihood.answer_weight(answers[z].tolist()))
        of_answer = of_answer if likelihood.trains_the_answer else 0.0
        return Completion(
            token_ids=np.array([z, *Y], np.int32),
            logprobs=torch.stack([reasoning[z], *answers[z]]).numpy(),
            versions=np.zeros(3, np.int32),
            roles=np.array([Role.COMPLETION, Role.REFERENCE, Role.REFERENCE], np.uint8),
            loss_weights=np.array([drawn, of_answer, of_answer], np.float32),
            finish_reason="stop",
            reward=rewards[z],
            likelihood=likelihood if told else None,
        )

    pairs = [(a, b) for a in range(VOCAB) for b in range(VOCAB)]
    prompt = np.array(PROMPT, np.int32)
    return [Group(i, 1, 0, 0, prompt, (completion(a, b), completion(b, a))) for i, (a, b) in enumerate(pairs)]


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Length of the difference over the length of what was expected."""
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["product", "log", "mean"])
def test_the_mean_gradient_over_an_older_policys_reasonings_is_that_of_the_objective(
    make_trainer: Make, kind: Kind
) -> None:
    """J = Σ_z π(z|x)·(0.7·f(π(y|x,z)) + g(z)) at the policy that is updated, from what one before it sampled and
    scored. Without the likelihood as a field of the completion, the same groups lead elsewhere."""
    trainer = make_trainer(**SETTINGS)
    disturb(trainer.policy.model, seed=1)
    with torch.no_grad():
        older = measured(copy.deepcopy(trainer.policy.model))
    disturb(trainer.policy.model, seed=2)
    model = copy.deepcopy(trainer.policy.model)
    reasoning, answers = measured(model)
    of_answer = f(kind, answers) if kind != "mean" else f(kind, answers).detach()  # which rlpr does not train
    objective = (reasoning.exp() * (SHARE * of_answer + others_reward(kind))).sum()
    expected = torch.autograd.grad(objective, list(model.parameters()))

    updates = recorded(trainer.optimizers["policy"], move=False)
    for told in (True, False):
        trainer.step(every_pair(kind, *older, told), 1)
    # The divisor is completions × max_tokens: two completions a group, one token at most.
    found, without = ([-g * VOCAB**2 for g in update.gradients] for update in updates)
    assert apart(found, expected) < 1e-4
    assert apart(without, expected) > 0.02


def test_a_reward_that_is_not_affine_in_the_likelihood_stays(make_trainer: Make) -> None:
    trainer = make_trainer(group_size=5)
    disturb(trainer.policy.model)
    group = likely(answered(eventful_group(0)), "product")
    bent = replace(
        group,
        completions=tuple(
            c if c.likelihood is None else replace(c, likelihood=c.likelihood.within(1.0, affine=False))
            for c in group.completions
        ),
    )
    rewards = [c.reward for c in group.completions if c.reward is not None]
    assert [s.trajectory.reward for s in trainer.step([bent], 3).samples[0]] == rewards
    assert [s.trajectory.reward for s in trainer.step([group], 3).samples[0]] != rewards


def test_answers_of_the_policy_that_is_updated_cost_no_forward_pass(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, passes = make_trainer(group_size=5), list[int]()
    measure = trainer._estimate.logprobs

    def counted(part: MiniBatch) -> Tensor:
        passes.append(part.tokens.stop)
        return measure(part)

    monkeypatch.setattr(trainer._estimate, "logprobs", counted)
    group = replace(answered(eventful_group(0), versions=(3,)), greedy=None)
    trainer.step([likely(group, "product")], 3)
    assert passes == []
    trainer.step([likely(group, "product")], 4)
    assert passes == [3 * sum(c.reward is not None and c.answer.any() for c in group.completions)]
