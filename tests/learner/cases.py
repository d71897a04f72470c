"""Small settings, synthetic groups whose every figure the test chooses, and a look into a trainer's updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.likelihood import Kind, Likelihood
from headrace_core.types.trajectory import NO_VERSION, Completion, Group, Role, sampled_completion
from headrace_learner.training.model_optimizer import ModelOptimizer
from headrace_learner.training.trainer import Trainer

VOCAB = 32


def hyperparameters(**given: object) -> Hyperparameters:
    """Small settings; `given` changes some."""
    small = {
        "batch_size": 4,
        "group_size": 4,
        "n_steps": 6,
        "learning_rate": 1e-2,
        "max_staleness": 2,
        "max_tokens": 16,
        "max_mismatch": 1e9,  # no engine sampled these groups
    }
    return Hyperparameters.model_validate(small | given)


def random_group(
    group_id: int,
    versions: Sequence[int] = (0,),
    completions: int = 4,
    rewards: Sequence[float | None] | None = None,
    greedy: float | None = None,
) -> Group:
    """A prompt and completions of random tokens and lengths; each completion's versions ascend through `versions`.

    With `greedy`, also a greedy completion of that reward.
    """
    rng = np.random.default_rng(group_id)
    if rewards is None:
        rewards = [float(rng.integers(0, 2)) for _ in range(completions)]
    made = [_random_completion(rng, versions, reward) for reward in rewards]
    prompt = rng.integers(0, VOCAB, int(rng.integers(2, 6))).astype(np.int32)
    baseline = None if greedy is None else _random_completion(rng, versions[-1:], greedy)
    return Group(group_id, 1, group_id, min(versions), prompt, tuple(made), baseline)


def eventful_group(group_id: int) -> Group:
    """Everything at once, for an update of version 3 with max_staleness 1.

    Tokens of the ages 3, 1 and 0; a completion wholly too old, whose reward counts all the same; one without a reward;
    in each, an environment token, a loss weight of 0.5 and, where it is long enough, one of 0; a greedy completion.
    Tokens of odd groups were sampled by a policy that liked them less: half of the staleness weights are above 1.
    """
    rng = np.random.default_rng(group_id)
    rewards = [float(reward) for reward in rng.normal(0.5, 1.0, 5)]
    group = random_group(group_id, (0, 2, 3), rewards=[*rewards[:2], None, *rewards[2:4]], greedy=rewards[4])
    group.completions[1].versions[:] = 0
    for completion in group.completions[::2]:
        object.__setattr__(completion, "finish_reason", "length")
    for completion in group.completions:
        completion.versions[1] = NO_VERSION
        completion.logprobs[1] = np.nan
        completion.roles[1] = Role.ENVIRONMENT
        completion.loss_weights[-1] = 0.5
        completion.loss_weights[4:5] = 0.0
        completion.logprobs[:] -= 0.8 * (group_id % 2)
    return group


def answered(group: Group, versions: Sequence[int] = (3, 2, 3, 1), weight: float | None = None) -> Group:
    """The same with a reference answer of 3 tokens after all of its completions but the last.

    Its tokens were scored by the versions of its completion's number; `weight` None: weights by chance, one of them 0.
    """
    rng = np.random.default_rng(group.group_id)
    ids = rng.integers(0, VOCAB, 3)
    scored = [_with_answer(c, ids, versions[i % len(versions)], weight, rng) for i, c in enumerate(group.completions)]
    return replace(group, completions=(*scored[:-1], group.completions[-1]))


def likely(group: Group, kind: Kind, coefficient: float = 0.7) -> Group:
    """The same, its rewards by that much the likelihood of the answers; its greedy completion's, if any, too."""
    rng = np.random.default_rng(group.group_id)
    greedy = group.greedy
    if greedy is not None:
        ids = group.completions[0].token_ids[group.completions[0].answer]
        greedy = _with_answer(greedy, ids.astype(np.int64), 0, None, rng)
    bounds: dict[Kind, dict[str, Any]]
    bounds = {"product": {}, "log": {"low": -14.0}, "mean": {"offset": 0.01, "low": 0.0, "high": 1.0}}
    how = Likelihood(kind, coefficient=coefficient, **bounds[kind])
    return replace(
        group,
        completions=tuple(replace(c, likelihood=how) if c.answer.any() else c for c in group.completions),
        greedy=None if greedy is None else replace(greedy, likelihood=how),
    )


def _with_answer(
    completion: Completion, ids: npt.NDArray[np.int64], version: int, weight: float | None, rng: np.random.Generator
) -> Completion:
    size = len(ids)
    weights = np.array([0.0, *rng.uniform(0.2, 1.5, size - 1)]) if weight is None else np.full(size, weight)
    added = {
        "token_ids": ids,
        "logprobs": np.log(rng.uniform(0.02, 0.06, size)),
        "versions": np.full(size, version),
        "roles": np.full(size, Role.REFERENCE),
        "loss_weights": weights,
    }
    whole = {
        name: np.concatenate([array := getattr(completion, name), more]).astype(array.dtype)
        for name, more in added.items()
    }
    return replace(completion, **whole)


def _random_completion(rng: np.random.Generator, versions: Sequence[int], reward: float | None) -> Completion:
    size = int(rng.integers(3, 12))
    return sampled_completion(
        rng.integers(0, VOCAB, size).astype(np.int32),
        np.log(rng.uniform(0.02, 0.06, size)).astype(np.float32),
        np.array([versions[i * len(versions) // size] for i in range(size)], np.int32),
        "stop",
        reward,
        {} if reward is None else {"right": reward},
    )


@dataclass(frozen=True)
class Update:
    """What an optimizer had before it: parameters in the model's order."""

    weights: list[Tensor]
    gradients: list[Tensor]


def recorded(model_optimizer: ModelOptimizer, move: bool = True) -> list[Update]:
    """Its updates from now on; without `move` they leave the weights as they are."""
    updates: list[Update] = []
    step = model_optimizer.optimizer.step

    def note(closure: None = None) -> None:
        parameters = list(model_optimizer.model.parameters())
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        updates.append(Update([p.detach().clone() for p in parameters], gradients))
        if move:
            step()

    model_optimizer.optimizer.step = note  # type: ignore[method-assign,assignment]
    return updates


def disturb(model: nn.Module, seed: int = 1) -> None:
    """Move every weight by chance, so that nothing is zero, uniform or as it was loaded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def assert_same_state(found: Trainer, expected: Trainer) -> None:
    """Weights and optimizer state of every model, bit for bit."""
    assert found.optimizers.keys() == expected.optimizers.keys()
    for name, model_optimizer in expected.optimizers.items():
        other = found.optimizers[name]
        pairs = zip(model_optimizer.model.parameters(), other.model.parameters(), strict=True)
        for i, (weight, other_weight) in enumerate(pairs):
            assert torch.equal(weight, other_weight), f"{name}: parameter {i}"
            state, other_state = model_optimizer.optimizer.state[weight], other.optimizer.state[other_weight]
            assert state.keys() == other_state.keys()
            assert all(torch.equal(state[key], other_state[key]) for key in state), f"{name}: optimizer state {i}"


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Every element, relative to the largest of all."""
    scale = max(float(e.abs().max()) for e in expected)
    assert scale > 0, "there is nothing to compare"
    apart = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True))
    assert apart <= tolerance * scale, f"apart by {apart / scale:.2g} of the largest"
