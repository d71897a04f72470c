"""Algorithms as presets: an advantage function and a policy loss. The trainer does not know their names.

To add one, write one function or two, and add one line here and one in `headrace_core.config.algorithm_presets`, with
its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace_core.config.algorithm_presets import algorithm_preset

from . import advantages, losses
from .advantages import AdvantageFunction
from .losses import PolicyLoss


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The functions that make an algorithm."""

    advantages: AdvantageFunction
    policy_loss: PolicyLoss
    critic: bool = False
    """Whether the advantages need a critic's values."""


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
    """The preset of that name. Raises `InvalidRequest`, which lists the known names."""
    algorithm_preset(name)
    return IMPLEMENTATIONS[name]
