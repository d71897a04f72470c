"""What a step promises beside its gradient, which is in test_objectives: the same again, however it is packed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headrace_core.types.trajectory import Group
from headrace_learner.algorithms.presets import IMPLEMENTATIONS
from headrace_learner.training.model_optimizer import TrainingDiverged
from headrace_learner.training.trainer import Trainer

from .cases import answered, assert_close, assert_same_state, disturb, eventful_group, random_group, recorded

Make = Callable[..., Trainer]
PRESETS = sorted(IMPLEMENTATIONS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_groups_give_the_same_state_bit_for_bit(make_trainer: Make, name: str) -> None:
    def run() -> Trainer:
        trainer = make_trainer(
            algorithm=name, batch_size=4, group_size=4, minibatches=2, weight_decay=0.1, kl_coefficient=0.1
        )
        for version in range(3):
            trainer.step([random_group(version * 4 + i, (version,), greedy=0.5) for i in range(4)], version)
        return trainer

    first = run()
    assert_same_state(run(), first)
    untrained = make_trainer().policy.model.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(first.policy.model.parameters(), untrained, strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_the_token_budget_does_not_change_the_gradient(make_trainer: Make, name: str) -> None:
    """Around the behaviour policy, so that ratios are not 1; except where that would leave the weight nothing to do."""
    groups = [answered(eventful_group(i)) for i in range(4)]
    proximal = "recompute" if name == "m2po" else "behaviour"

    def run(budget: int) -> list[list[Tensor]]:
        trainer = make_trainer(
            **{"algorithm": name, "token_budget": budget, "max_grad_norm": 1e9, "proximal": proximal},
            **{"minibatches": 1, "batch_size": 4, "group_size": 4, "kl_coefficient": 0.1},
            **{"clip_low": 0.3, "clip_high": 0.3, "max_staleness": 1},
        )
        disturb(trainer.policy.model)
        updates = [recorded(model_optimizer) for model_optimizer in trainer.optimizers.values()]
        trainer.step(groups, version=3)
        return [only.gradients for (only,) in updates]

    whole = run(8192)
    for found, expected in zip(run(64), whole, strict=True):
        assert_close(found, expected, 2e-6)


def test_masked_tokens_leave_no_trace(make_trainer: Make) -> None:
    def run(stale_logprob: float) -> Trainer:
        groups = [random_group(i, versions=(0, 3)) for i in range(4)]
        for completion in (c for g in groups for c in g.completions):
            completion.logprobs[completion.versions == 0] = stale_logprob
        trainer = make_trainer(max_staleness=1, minibatches=2)
        assert trainer.step(groups, version=3).counts.masked[3] > 0
        return trainer

    assert_same_state(run(-0.1), run(-9.0))


def test_the_norm_is_that_of_the_whole_gradient_before_clipping(make_trainer: Make) -> None:
    groups = [random_group(i) for i in range(4)]
    free, clipped = make_trainer(max_grad_norm=1e9), make_trainer(max_grad_norm=0.01)
    updates = [recorded(trainer.optimizers["policy"], move=False) for trainer in (free, clipped)]
    results = [trainer.step(groups, version=0) for trainer in (free, clipped)]
    (whole,), (scaled,) = updates
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in whole.gradients))
    assert [r.grad_norm for r in results] == pytest.approx([norm, norm], rel=1e-5)
    assert norm > 0.01
    assert_close(scaled.gradients, [g * 0.01 / norm for g in whole.gradients], 1e-4)


def test_the_proximal_policy_is_the_one_before_the_first_minibatch(make_trainer: Make) -> None:
    """With two minibatches the second has moved away from it: by what one update did, no more and no less."""
    groups = [random_group(i) for i in range(4)]
    alone = make_trainer()
    alone.step(groups[:2], version=0)
    moved = alone.step(groups[2:], version=0)  # proximal: after the first update
    both = make_trainer(minibatches=2).step(groups, version=0)  # proximal: before it
    first_alone = make_trainer().step(groups, version=0)
    assert both.measured.entropy == pytest.approx(first_alone.measured.entropy, rel=1e-5)
    assert both.measured.behaviour_kl == pytest.approx(first_alone.measured.behaviour_kl, rel=1e-5)
    assert moved.measured.entropy != pytest.approx(first_alone.measured.entropy, rel=1e-3)
    assert first_alone.measured.clip_share == 0.0  # u is 1 everywhere
    assert make_trainer(minibatches=4, clip_low=1e-4, clip_high=1e-4).step(groups, 0).measured.clip_share > 0.1


def test_what_is_computed_beforehand_is_what_the_update_would_find(make_trainer: Make) -> None:
    """With one minibatch the proximal policy is the update's own forward pass, unless a penalty needs it before.

    A penalty too small to count makes both runs alike in all but that.
    """
    runs = [make_trainer(kl_coefficient=coefficient) for coefficient in (0.0, 1e-12)]
    updates = [recorded(trainer.optimizers["policy"]) for trainer in runs]
    for trainer in runs:
        trainer.step([eventful_group(i) for i in range(4)], version=3)
    assert_close(updates[0][0].gradients, updates[1][0].gradients, 1e-6)


def test_the_reference_stays_the_base_model(make_trainer: Make) -> None:
    """However far the policy goes: with k3, no estimate is negative."""
    trainer = make_trainer(kl_coefficient=1e-3, kl_in="loss", kl_estimator="k3")
    groups = [random_group(i) for i in range(4)]
    found = [trainer.step(groups, version=0).measured.extra["reference_kl"] for _ in range(3)]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[2] > found[1] > 1e-4


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", ["rloo", "remax"])
def test_training_makes_rewarded_completions_likelier(make_trainer: Make, name: str, mean: str) -> None:
    group = random_group(1, rewards=[1.0, 0.0, 0.0, 0.0], greedy=0.0)
    trainer = make_trainer(algorithm=name, group_size=4, batch_size=1, learning_rate=1e-3, loss_mean=mean)

    def rewarded() -> float:
        c, p = group.completions[0], len(group.prompt_ids)
        ids = torch.tensor([[*group.prompt_ids.tolist(), *c.token_ids.tolist()]])
        with torch.no_grad():
            every = torch.log_softmax(trainer.policy.model(input_ids=ids).logits[0], -1)
        return float(every[p - 1 : -1].gather(1, ids[0, p:, None]).sum())

    before = rewarded()
    for _ in range(5):
        trainer.step([group], version=0)
    assert rewarded() > before + 1


@pytest.mark.parametrize("name", ["grpo", "remax", "ppo", "m2po"])
@pytest.mark.parametrize("groups", [[], [random_group(0, rewards=[None])], [random_group(0, (0,), greedy=1.0)]])
def test_a_step_without_tokens_changes_nothing(make_trainer: Make, name: str, groups: list[Group]) -> None:
    """No group, no reward, all too old."""
    trainer = make_trainer(algorithm=name, batch_size=4, group_size=4, weight_decay=0.1)
    result = trainer.step(groups, version=9)
    assert (result.loss, result.grad_norm, result.counts.contributing.total()) == (0.0, 0.0, 0)
    assert_same_state(trainer, make_trainer(algorithm=name, batch_size=4, group_size=4, weight_decay=0.1))


def test_warm_up_is_linear_and_then_constant(make_trainer: Make) -> None:
    trainer = make_trainer(learning_rate=0.4, warmup_steps=4)
    rates = [trainer.step([random_group(0, rewards=[None])], v).learning_rate for v in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_a_gradient_that_is_not_finite_ends_training_before_it_harms(make_trainer: Make) -> None:
    trainer = make_trainer()
    weights = trainer.policy.model.state_dict()
    weights["model.norm.weight"][0] = torch.nan
    before = {k: v.clone() for k, v in weights.items() if k != "model.norm.weight"}
    with pytest.raises(TrainingDiverged, match="norm is nan"):
        trainer.step([random_group(i) for i in range(4)], 0)
    assert all(torch.equal(v, weights[k]) for k, v in before.items())


def test_what_is_not_computed_changes_no_gradient_and_no_figure_but_of_its_own(make_trainer: Make) -> None:
    """A group of equal rewards, against the same with rewards that differ by less than a float's noise in the loss."""
    others = [random_group(i, rewards=[1.0, 0.0, 0.5, 0.0]) for i in range(3)]
    silent, faint = random_group(9, rewards=[1.0] * 4), random_group(9, rewards=[1.0, 1.0, 1.0, 1.0 + 1e-12])
    trainers = make_trainer(max_grad_norm=1e9), make_trainer(max_grad_norm=1e9)
    found = []
    for trainer, group in zip(trainers, (silent, faint), strict=True):
        updates = recorded(trainer.optimizers["policy"], move=False)
        result = trainer.step([*others, group], 0)
        found.append((updates, result))
    (less, without), (more, with_it) = found
    assert_close(less[0].gradients, more[0].gradients, 1e-5)
    assert without.counts == with_it.counts
    tokens = sum(g.sampled_tokens for g in others)
    alone = make_trainer().step(others, 0)
    assert without.measured.entropy == pytest.approx(alone.measured.entropy)
    assert without.loss == pytest.approx(alone.loss * tokens / (tokens + silent.sampled_tokens), abs=1e-6)


def test_an_answer_makes_itself_likelier_where_rewards_are_equal(make_trainer: Make) -> None:
    """And the more, the more it weighs: the completion's own tokens have no advantage."""

    def likelier(weight: float) -> float:
        group = answered(random_group(1, rewards=[1.0] * 4), (0,), weight)
        trainer = make_trainer(algorithm="rloo", batch_size=1, max_grad_norm=1e9)
        trainer.optimizers["policy"].optimizer = torch.optim.SGD(trainer.policy.model.parameters(), lr=0.1)
        found = [trainer.step([group], 0).measured.extra["answer_logprob"] for _ in range(2)]
        return found[1] - found[0]

    light, heavy = likelier(0.5), likelier(1.0)
    assert light > 1e-4
    assert heavy == pytest.approx(2 * light, rel=0.1)


def test_answers_change_no_figure_of_what_the_policy_chose(make_trainer: Make) -> None:
    groups = [random_group(i) for i in range(4)]
    bare, with_answers = (
        make_trainer(importance_cap=1.5).step(given, 0).measured
        for given in (groups, [answered(group, (0,)) for group in groups])
    )
    assert with_answers.extra.pop("answer_logprob") < 0
    for name in ("entropy", "effective_sample_size", "clip_share", "behaviour_kl", "extra"):
        assert getattr(bare, name) == pytest.approx(getattr(with_answers, name), rel=1e-5), name
    assert bare.loss != pytest.approx(with_answers.loss, rel=1e-2)


def test_a_step_of_equal_rewards_alone_leaves_the_weights(make_trainer: Make) -> None:
    trainer = make_trainer(learning_rate=1e-2)
    trainer.step([random_group(i) for i in range(4)], 0)
    before = {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}
    result = trainer.step([random_group(i, rewards=[1.0] * 4) for i in range(4)], 1)
    assert all(torch.equal(before[k], v) for k, v in trainer.policy.model.state_dict().items())
    assert (result.loss, result.grad_norm, result.measured.entropy) == (0.0, 0.0, 0.0)
    assert result.counts.contributing.total() > 0
