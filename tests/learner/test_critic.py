"""What the critic starts from and learns, and how long the policy waits for it; test_objectives has its gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace_core.types.trajectory import Group
from headrace_learner.algorithms.batch import build_step_batch
from headrace_learner.models.critic import Critic
from headrace_learner.training.trainer import Trainer

from .cases import assert_close, disturb, hyperparameters, random_group, recorded

Make = Callable[..., Trainer]


def groups(version: int = 0) -> list[Group]:
    return [random_group(i, (version,)) for i in range(4)]


def copies(trainer: Trainer, name: str) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.optimizers[name].model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_starts_from_the_policys_layers_and_says_zero(model_folder: Path, make_trainer: Make) -> None:
    critic, policy = Critic(model_folder), make_trainer().policy
    state = policy.model.base_model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in critic.net.base.state_dict().items())
    (minibatch,) = build_step_batch(groups(), 0, hyperparameters()).minibatches
    values = critic.values(minibatch.micro_batches[0])
    assert values.shape == minibatch.micro_batches[0].targets_N.shape
    assert not values.any()


def test_only_algorithms_that_want_one_have_one(make_trainer: Make) -> None:
    assert make_trainer().critic is None
    assert make_trainer().optimizers.keys() == {"policy"}
    assert make_trainer(algorithm="ppo").optimizers.keys() == {"policy", "critic"}


def test_while_it_warms_up_the_policy_stays_bit_for_bit(make_trainer: Make) -> None:
    trainer = make_trainer(algorithm="ppo", critic_warmup_steps=2, weight_decay=0.1)
    start, critic = copies(trainer, "policy"), copies(trainer, "critic")
    state = {id(p): dict(trainer.optimizers["policy"].optimizer.state[p]) for p in trainer.policy.model.parameters()}
    for version in range(2):
        result = trainer.step(groups(version), version)
        assert result.grad_norm == 0.0
        assert result.measured.entropy > 0  # measured all the same
        assert same(copies(trainer, "policy"), start)
        assert not same(copies(trainer, "critic"), critic)
        critic = copies(trainer, "critic")
    for p in trainer.policy.model.parameters():
        now = trainer.optimizers["policy"].optimizer.state[p]
        assert all(torch.equal(now[key], state[id(p)][key]) for key in now)
    assert trainer.step(groups(2), version=2).grad_norm > 0
    assert not same(copies(trainer, "policy"), start)


@pytest.mark.parametrize(("given", "rates"), [(None, [1e-3, 2e-3, 2e-3]), (0.5, [0.25, 0.5, 0.5])])
def test_its_learning_rate_warms_up_with_the_policys(
    make_trainer: Make, given: float | None, rates: list[float]
) -> None:
    trainer = make_trainer(algorithm="ppo", learning_rate=2e-3, critic_learning_rate=given, warmup_steps=2)
    found = []
    for version in range(3):
        result = trainer.step([random_group(0, rewards=[None])], version)
        assert result.learning_rate == pytest.approx(1e-3 if version == 0 else 2e-3)
        assert {g["lr"] for g in trainer.optimizers["policy"].optimizer.param_groups} == {result.learning_rate}
        (rate,) = {g["lr"] for g in trainer.optimizers["critic"].optimizer.param_groups}
        found.append(rate)
    assert found == pytest.approx(rates)


def test_it_learns_what_was_earned(make_trainer: Make) -> None:
    """Every completion earns 2: the value tends to it, with the policy held still."""
    trainer = make_trainer(algorithm="ppo", critic_warmup_steps=100, value_clip=10.0, learning_rate=3e-3)
    batch = [random_group(i, rewards=[2.0] * 4) for i in range(4)]
    found = [trainer.step(batch, version=0).measured.extra for _ in range(12)]
    assert found[0]["value_loss"] > 1.0
    assert found[-1]["value"] == pytest.approx(2.0, abs=0.3)
    assert found[-1]["value_loss"] < 0.1


def test_gradient_checkpointing_gives_the_same_gradients(make_trainer: Make) -> None:
    def run(checkpointed: bool) -> list[Tensor]:
        trainer = make_trainer(algorithm="ppo", minibatches=1, gradient_checkpointing=checkpointed)
        assert trainer.critic is not None
        disturb(trainer.critic.net)
        updates = recorded(trainer.optimizers["critic"])
        trainer.step(groups(), version=0)
        return updates[0].gradients

    assert_close(run(True), run(False), 1e-6)
