"""Every gradient of every preset against autograd of the objective as written down in `oracle`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.types.likelihood import Kind
from headrace_core.types.trajectory import Completion, Group, Role
from headrace_learner.algorithms.presets import IMPLEMENTATIONS
from headrace_learner.training.trainer import StepResult, Trainer

from . import oracle
from .cases import (
    VOCAB,
    Update,
    answered,
    assert_close,
    disturb,
    eventful_group,
    hyperparameters,
    likely,
    recorded,
)

Make = Callable[..., Trainer]
VERSION = 3
GROUPS = [eventful_group(i) for i in range(4)]
ANSWERED = [answered(group) for group in GROUPS]
"""By completion, an answer scored by version 3; by 2, after a completion that is too old; one without a reward; an
answer too old; none. The first token of each answer has weight 0."""
SMALL = {"max_staleness": 1, "temperature": 0.7, "max_grad_norm": 1e9, "learning_rate": 3e-3, "minibatches": 2}
"""The bound masks one age, the temperature is not 1, no gradient is scaled down; the second minibatch sees a policy
that the first has moved."""
TOLERANCE = 2e-5


def moved(make_trainer: Make, **settings: object) -> Trainer:
    """Its models are no longer what they were loaded as: else no divergence, no value is there to be wrong."""
    trainer = make_trainer(**settings)
    disturb(trainer.policy.model)
    if trainer.critic is not None:
        disturb(trainer.critic.net, seed=2)
    return trainer


def before_the_step(trainer: Trainer) -> oracle.Models:
    critic = None
    if trainer.critic is not None:
        critic = copy.deepcopy((trainer.critic.net.base, trainer.critic.net.head))
    base = AutoModelForCausalLM.from_pretrained(trainer.policy.folder, dtype=torch.float32)
    return oracle.Models(copy.deepcopy(trainer.policy.model), base, critic)


def gradient(loss: Callable[[], Tensor], models: Sequence[nn.Module], update: Update) -> list[Tensor]:
    """Of the loss, at the weights that the update began with."""
    parameters = [p for model in models for p in model.parameters()]
    with torch.no_grad():
        for parameter, weight in zip(parameters, update.weights, strict=True):
            parameter.copy_(weight)
    return list(torch.autograd.grad(loss(), parameters))


def compare(make_trainer: Make, groups: Sequence[Group] = GROUPS, **settings: Any) -> StepResult:
    """One step, each update's gradients against the oracle's; at least one of them must be there."""
    settings = SMALL | settings
    s = hyperparameters(**settings)
    trainer = moved(make_trainer, **settings)
    models = before_the_step(trainer)
    step = oracle.read(groups, VERSION, s, models)
    updates = recorded(trainer.optimizers["policy"])
    critic_updates = recorded(trainer.optimizers["critic"]) if trainer.critic is not None else []
    result = trainer.step(groups, VERSION)

    size = len(groups) // s.minibatches
    parts = [slice(i * size, (i + 1) * size) for i in range(s.minibatches)]
    assert len(updates) == len(parts)
    now = copy.deepcopy(models)
    for part, update in zip(parts, updates, strict=True):
        expected = gradient(partial(oracle.policy_loss, step, part, s, now.policy), [now.policy], update)
        assert_close(update.gradients, expected, TOLERANCE)
    for part, update in zip(parts, critic_updates, strict=bool(critic_updates)):
        expected = gradient(partial(oracle.value_loss, step, part, s, now.critic), now.critic, update)
        assert_close(update.gradients, expected, TOLERANCE)
    return result


def test_the_oracle_knows_every_preset() -> None:
    assert oracle.ADVANTAGES.keys() == IMPLEMENTATIONS.keys()


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_a_preset_with_its_own_settings(make_trainer: Make, name: str) -> None:
    result = compare(make_trainer, algorithm=name, batch_size=4, group_size=5)
    assert result.counts.masked.total() > 0
    assert result.counts.contributing.keys() == {0, 1}
    defaults = ALGORITHMS[name].defaults
    assert ("reference_kl" in result.measured.extra) == ("kl_coefficient" in defaults)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_a_preset_on_completions_with_reference_answers(make_trainer: Make, name: str) -> None:
    found = compare(make_trainer, ANSWERED, algorithm=name, batch_size=4, group_size=5, kl_coefficient=0.2)
    without = compare(make_trainer, GROUPS, algorithm=name, batch_size=4, group_size=5, kl_coefficient=0.2)
    added = found.counts.contributing - without.counts.contributing, found.counts.masked - without.counts.masked
    assert added == ({0: 8, 1: 8}, {2: 8})
    assert found.measured.extra.keys() - without.measured.extra.keys() == {"answer_logprob"}


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_a_preset_on_rewards_of_an_older_policys_likelihoods(make_trainer: Make, name: str) -> None:
    kinds: list[Kind] = ["product", "log", "mean", "product"]
    groups = [likely(group, kind) for group, kind in zip(ANSWERED, kinds, strict=True)]
    found = compare(make_trainer, groups, algorithm=name, batch_size=4, group_size=5)
    assert abs(found.measured.extra["reward_shift"]) > 1e-3
    used = [s.trajectory for of_group in found.samples for s in of_group]
    given = [c.reward for g in groups for c in g.completions if c.reward is not None]
    assert sum(t.reward != r for t, r in zip(used, given, strict=True)) == 8  # two answers a group are older ones'


@pytest.mark.parametrize("proximal", ["behaviour", "interpolate"])
def test_without_a_proximal_policy_beforehand_rewards_stay(make_trainer: Make, proximal: str) -> None:
    found = compare(make_trainer, [likely(group, "product") for group in ANSWERED], proximal=proximal)
    assert "reward_shift" not in found.measured.extra


@pytest.mark.parametrize("level", ["sequence", "geometric"])
@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_an_answer_is_a_sequence_of_its_own(make_trainer: Make, mean: str, level: str) -> None:
    settings = {"importance_level": level, "loss_mean": mean, "importance_cap": 2.0}
    found = compare(make_trainer, ANSWERED, algorithm="gspo", clip_low=0.1, clip_high=0.1, **settings)
    assert 0 < found.measured.extra["importance_cut_share"] < 1


@pytest.mark.parametrize("reward", ["likelihood", "log"])
def test_the_mean_gradient_over_all_reasonings_is_that_of_the_objective(make_trainer: Make, reward: str) -> None:
    """J = Σ_z π(z|x)·π(y|x,z) (VeriFree, arXiv 2505.21493), and Σ_z π(z|x)·log π(y|x,z) (JEPO, arXiv 2503.19618).

    A reasoning z is one token of the 32, the answer y two. Every pair of reasonings is a group of its own; loss
    weights are the chance of drawing it, so that the sum over groups is the mean over draws.
    """
    settings = {"algorithm": "rloo", "batch_size": VOCAB**2, "group_size": 2, "temperature": 0.7}
    trainer = moved(make_trainer, **settings, max_grad_norm=1e9, max_tokens=1)
    model, prompt, y = copy.deepcopy(trainer.policy.model), [3, 1, 4], [15, 9]
    ids = torch.tensor([[*prompt, z, *y] for z in range(VOCAB)])
    every = torch.log_softmax(model(input_ids=ids).logits / 0.7, -1)
    reasoning = every[0, len(prompt) - 1]
    answers = torch.stack([every[:, len(prompt), y[0]], every[:, len(prompt) + 1, y[1]]], 1)
    log = answers.sum(1)
    objective = (reasoning.exp() * (log.exp() if reward == "likelihood" else log)).sum()
    expected = torch.autograd.grad(objective, list(model.parameters()))

    rewards = (log.exp() if reward == "likelihood" else log).tolist()
    weights = [r if reward == "likelihood" else 1.0 for r in rewards]
    chance = reasoning.exp().tolist()

    def completion(z: int, other: int) -> Completion:
        drawn = chance[z] * chance[other]
        return Completion(
            token_ids=np.array([z, *y], np.int32),
            logprobs=torch.stack([reasoning[z], *answers[z]]).detach().numpy(),
            versions=np.zeros(3, np.int32),
            roles=np.array([Role.COMPLETION, Role.REFERENCE, Role.REFERENCE], np.uint8),
            loss_weights=np.array([drawn, drawn * weights[z], drawn * weights[z]], np.float32),
            finish_reason="stop",
            reward=rewards[z],
        )

    pairs = [(a, b) for a in range(VOCAB) for b in range(VOCAB)]
    groups = [
        Group(i, 1, 0, 0, np.array(prompt, np.int32), (completion(a, b), completion(b, a)))
        for i, (a, b) in enumerate(pairs)
    ]
    updates = recorded(trainer.optimizers["policy"])
    trainer.step(groups, 0)
    # The divisor is completions × max_tokens: two completions a group, one token at most.
    assert_close([-g * len(pairs) for g in updates[0].gradients], expected, TOLERANCE)


def test_a_divergence_in_the_loss_is_of_what_the_policy_chose(make_trainer: Make) -> None:
    compare(make_trainer, ANSWERED, algorithm="rloo", kl_coefficient=0.3, kl_in="loss", kl_estimator="k3")


@pytest.mark.parametrize("proximal", ["behaviour", "interpolate"])
@pytest.mark.parametrize("name", ["dr_grpo", "ppo"])
def test_an_answer_off_policy(make_trainer: Make, name: str, proximal: str) -> None:
    found = compare(make_trainer, ANSWERED, algorithm=name, proximal=proximal, clip_low=0.1, clip_high=0.1)
    assert found.measured.clip_share > 0


@pytest.mark.parametrize(
    ("name", "place", "estimator"),
    [
        *[("grpo", "reward", "k1"), ("grpo", "loss", "k2"), ("grpo", "loss", "k3")],
        *[("grpo", "loss", "k1+"), ("grpo", "loss", "k3+")],
        *[("reinforce_pp", "reward", "k1"), ("reinforce_pp", "loss", "k3"), ("remax", "loss", "k2")],
    ],
)
def test_a_divergence(make_trainer: Make, name: str, place: str, estimator: str) -> None:
    found = compare(make_trainer, algorithm=name, kl_coefficient=0.3, kl_in=place, kl_estimator=estimator)
    assert found.measured.extra["reference_kl"] != 0


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("importance", ["truncate", "mask", "none"])
def test_a_staleness_weight(make_trainer: Make, importance: str, level: str) -> None:
    cap = {"token": 2.0, "sequence": 3.0, "geometric": 1.5}[level]
    found = compare(make_trainer, importance=importance, importance_level=level, importance_cap=cap)
    cut = found.measured.extra["importance_cut_share"]
    assert cut == 0 if importance == "none" else 0 < cut < 1


@pytest.mark.parametrize("proximal", ["behaviour", "interpolate"])
@pytest.mark.parametrize("name", ["gspo", "ppo", "cispo"])
def test_a_proximal_policy(make_trainer: Make, name: str, proximal: str) -> None:
    found = compare(make_trainer, algorithm=name, proximal=proximal, kl_coefficient=0.1, clip_low=0.1, clip_high=0.1)
    assert 0 < found.measured.clip_share < 1


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_a_mean(make_trainer: Make, mean: str) -> None:
    compare(make_trainer, algorithm="rloo", loss_mean=mean)


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_a_critic(make_trainer: Make, mean: str) -> None:
    found = compare(
        make_trainer,
        algorithm="ppo",
        loss_mean=mean,
        gamma=0.9,
        gae_lambda=0.8,
        value_clip=0.01,
        kl_coefficient=0.2,
        advantage_clip=1.0,
    )
    assert found.measured.extra["value_loss"] > 0


@pytest.mark.parametrize("truncation", ["bootstrap", "end"])
def test_a_completion_that_was_cut_off(make_trainer: Make, truncation: str) -> None:
    """Three of the five in each group, one of which has no reward."""
    compare(make_trainer, algorithm="ppo", gamma=0.9, gae_lambda=0.8, truncation=truncation)


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "remax"])
def test_a_clip_of_advantages_and_a_discount(make_trainer: Make, name: str) -> None:
    compare(make_trainer, algorithm=name, advantage_clip=0.4, gamma=0.8, kl_coefficient=0.2)


def test_a_clip_that_cuts(make_trainer: Make) -> None:
    """In the second minibatch alone: the first sees u = 1 everywhere."""
    found = compare(make_trainer, clip_low=0.01, clip_high=0.02)
    assert 0 < found.measured.clip_share < 0.5
    assert compare(make_trainer, minibatches=1, clip_low=0.01, clip_high=0.02).measured.clip_share == 0


def test_a_group_without_a_greedy_reward_is_no_part_of_remax(make_trainer: Make) -> None:
    lacking = Group(*(getattr(GROUPS[1], name) for name in Group.__slots__[:6]))
    assert lacking.greedy is None
    with_it = [GROUPS[0], lacking, GROUPS[2], GROUPS[3]]
    trainers = [moved(make_trainer, algorithm="remax", **SMALL | {"minibatches": 1}) for _ in range(2)]
    updates = [recorded(trainer.optimizers["policy"]) for trainer in trainers]
    trainers[0].step(with_it, VERSION)
    trainers[1].step([GROUPS[0], GROUPS[2], GROUPS[3]], VERSION)
    assert_close(updates[0][0].gradients, updates[1][0].gradients, 1e-6)
