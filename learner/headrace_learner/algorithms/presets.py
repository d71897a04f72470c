"""Algorithms as presets: advantages × policy loss. The trainer is blind to their names.

Adding one is one small function (or two) and one line here, with its facts and defaults in
`headrace_core.config.algorithm_presets`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace_core.config.algorithm_presets import algorithm_preset

from . import advantages, losses
from .advantages import AdvantageFunction
from .losses import PolicyLoss


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What the learner does with a batch of groups."""

    advantages: AdvantageFunction
    policy_loss: PolicyLoss
    critic: bool = False
    """Its advantages need a critic's values."""


IMPLEMENTATIONS: dict[str, Algorithm] = {
    "grpo": Algorithm(advantages.grpo, losses.clipped),
    "dr_grpo": Algorithm(advantages.dr_grpo, losses.clipped),
    "rloo": Algorithm(advantages.rloo, losses.unclipped),
    "reinforce_pp": Algorithm(advantages.reinforce_pp, losses.clipped),
    "remax": Algorithm(advantages.remax, losses.unclipped),
    "ppo": Algorithm(advantages.gae, losses.clipped, critic=True),
    "dapo": Algorithm(advantages.grpo, losses.clipped),
    "gspo": Algorithm(advantages.grpo, losses.gspo),
    "cispo": Algorithm(advantages.grpo, losses.cispo),
    "m2po": Algorithm(advantages.grpo, losses.unclipped),
}


def algorithm(name: str) -> Algorithm:
    """The preset of that name. Raises `InvalidRequest` that names the known ones."""
    algorithm_preset(name)
    return IMPLEMENTATIONS[name]
