"""Algorithms as presets: advantages × policy loss. The trainer is blind to their names.

Adding one is one small function (or two) and one line here, with its facts in `headrace_core.algorithms`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace_core.algorithms import algorithm_facts

from .advantages import AdvantageFunction, grpo
from .losses import PolicyLoss, decoupled_ppo


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What the learner does with a batch of groups."""

    advantages: AdvantageFunction
    policy_loss: PolicyLoss


IMPLEMENTATIONS: dict[str, Algorithm] = {
    "grpo": Algorithm(advantages=grpo, policy_loss=decoupled_ppo),
}


def algorithm(name: str) -> Algorithm:
    """The preset of that name. Raises `InvalidRequest` that names the known ones."""
    algorithm_facts(name)
    return IMPLEMENTATIONS[name]
