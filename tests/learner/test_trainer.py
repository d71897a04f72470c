"""A step against an independent oracle: one sequence at a time, full logits, the formula written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from learner_cases import random_group
from torch import Tensor

from headrace_core.trajectory import Group
from headrace_learner.trainer import Trainer

Make = Callable[..., Trainer]


def gradients(trainer: Trainer) -> list[Tensor]:
    found = []
    for parameter in trainer.policy.model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
    return found


def without_updates(trainer: Trainer) -> Trainer:
    """Its optimizer step leaves the weights alone, so that the gradient can be looked at."""
    trainer.optimizer.step = lambda closure=None: None  # type: ignore[method-assign,assignment]
    return trainer


def oracle(trainer: Trainer, groups: Sequence[Group], version: int, bound: int, temperature: float) -> list[Tensor]:
    """Gradient of −(1/N) Σ_t min(π_prox/π_b, 5)·A·π_θ/π_prox at π_θ = π_prox, A = (r − mean)/std, N tokens in all."""
    model = trainer.policy.model
    terms, tokens = [], 0
    for group in groups:
        rewards = [c.reward for c in group.completions if c.reward is not None]
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
        for completion in group.completions:
            if completion.reward is None:
                continue
            ids = torch.tensor([*group.prompt_ids.tolist(), *completion.token_ids.tolist()])
            every = torch.log_softmax(model(input_ids=ids[None]).logits[0] / temperature, -1)
            for i, token in enumerate(completion.token_ids.tolist()):
                if version - int(completion.versions[i]) > bound:
                    continue
                current = every[len(group.prompt_ids) + i - 1, token]
                weight = min(math.exp(current.item() - float(completion.logprobs[i])), 5.0)
                ratio = torch.exp(current - current.item())
                terms.append(-weight * ratio * (completion.reward - mean) / (std + 1e-6))
                tokens += 1
    loss = torch.stack(terms).sum() / tokens
    return list(torch.autograd.grad(loss, list(model.parameters())))


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    scale = max(float(e.abs().max()) for e in expected)
    return all(float((f - e).abs().max()) <= tolerance * scale for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_that_of_the_formula(make_trainer: Make, temperature: float) -> None:
    groups = [random_group(i, versions=(0, 2, 3), rewards=[1.0, 0.0, None, 0.25]) for i in range(4)]
    expected = oracle(make_trainer(), groups, version=3, bound=1, temperature=temperature)
    trainer = without_updates(make_trainer(max_staleness=1, temperature=temperature, max_grad_norm=1e9))
    result = trainer.step(groups, version=3)
    assert result.counts.masked.total() > 0
    assert close(gradients(trainer), expected, 1e-5)
    assert result.grad_norm == pytest.approx(float(torch.stack([e.norm() for e in expected]).norm()), rel=1e-4)


def test_masked_tokens_leave_no_trace_in_the_gradient(make_trainer: Make) -> None:
    def run(stale_logprob: float) -> list[Tensor]:
        groups = [random_group(i, versions=(0, 3)) for i in range(4)]
        for completion in (c for g in groups for c in g.completions):
            completion.logprobs[completion.versions == 0] = stale_logprob
        trainer = without_updates(make_trainer(max_staleness=1))
        trainer.step(groups, version=3)
        return gradients(trainer)

    assert all(torch.equal(a, b) for a, b in zip(run(-0.1), run(-9.0), strict=True))


def test_the_token_budget_does_not_change_the_gradient(make_trainer: Make) -> None:
    def run(budget: int) -> list[Tensor]:
        trainer = without_updates(make_trainer(token_budget=budget, max_grad_norm=1e9))
        trainer.step([random_group(i) for i in range(8)], version=0)
        return gradients(trainer)

    whole = run(8192)
    for budget in (64, 100, 300):
        assert close(run(budget), whole, 1e-6)


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


def test_the_same_groups_give_the_same_weights_bit_for_bit(make_trainer: Make) -> None:
    def run() -> dict[str, Tensor]:
        trainer = make_trainer(minibatches=2, weight_decay=0.1, warmup_steps=2)
        for version in range(3):
            trainer.step([random_group(version * 4 + i) for i in range(4)], version)
        return {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}

    first, second = run(), run()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_makes_rewarded_completions_likelier(make_trainer: Make) -> None:
    group = random_group(1, rewards=[1.0, 0.0, 0.0, 0.0])
    trainer = make_trainer(importance_cap=1e-3, learning_rate=1e-3)

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


def test_warm_up_is_linear_and_then_constant(make_trainer: Make) -> None:
    trainer = make_trainer(learning_rate=0.4, warmup_steps=4)
    rates = [trainer.step([random_group(0, rewards=[None])], v).learning_rate for v in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
