"""The algorithms by name: what the gateway and the rollout workers need to know about them, without importing torch.

The gateway refuses an unknown name at submission; a rollout worker asks whether a greedy completion is wanted. The
learner implements exactly these names (a test compares the two lists).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class AlgorithmPreset:
    """Name-independent facts about one algorithm, for every service but the learner."""

    description: str
    wants_greedy: bool = False
    """Each group needs a greedy completion in addition to the sampled ones."""
    compares_within_group: bool = False
    """Its baseline is the group's own mean, so that a group of one has no learning signal."""
    trains_critic: bool = False
    """It trains a second model, whose memory is that of the policy."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that this algorithm sets where the user does not."""


ALGORITHMS: dict[str, AlgorithmPreset] = {
    "grpo": AlgorithmPreset(
        "Advantages normalised within the group; decoupled clipped loss, mean over tokens.",
        compares_within_group=True,
    ),
    "dr_grpo": AlgorithmPreset(
        "GRPO without division by the group's deviation or by completion lengths (arXiv 2503.20783).",
        compares_within_group=True,
        defaults={"loss_mean": "constant"},
    ),
    "rloo": AlgorithmPreset(
        "REINFORCE with the mean of the group's other rewards as baseline (arXiv 2402.14740).",
        compares_within_group=True,
        defaults={"loss_mean": "constant"},
    ),
    "reinforce_pp": AlgorithmPreset(
        "REINFORCE++: returns normalised over the whole batch, no group baseline, clipped loss (arXiv 2501.03262).",
    ),
    "remax": AlgorithmPreset(
        "ReMax: REINFORCE with the greedy completion's reward as baseline; no critic, no clip (arXiv 2310.10505).",
        wants_greedy=True,
        defaults={
            **{"group_size": 1, "batch_size": 64, "loss_mean": "constant"},
            **{"kl_coefficient": 0.05, "kl_in": "reward", "advantage_clip": 5.0},
        },
    ),
    "ppo": AlgorithmPreset(
        "PPO with a critic: generalised advantage estimation, clipped policy and value losses (arXiv 1707.06347).",
        trains_critic=True,
        defaults={"minibatches": 4},
    ),
    "dapo": AlgorithmPreset(
        "GRPO with a higher upper clip; groups of equal rewards are filtered, others take their place "
        "(arXiv 2503.14476).",
        compares_within_group=True,
        defaults={"clip_high": 0.28, "filter_groups": True, "minibatches": 4},
    ),
    "gspo": AlgorithmPreset(
        "GRPO with the ratio, its clip and the staleness weight of whole completions, length-normalised "
        "(arXiv 2507.18071).",
        compares_within_group=True,
        defaults={
            **{"clip_low": 3e-4, "clip_high": 4e-4, "minibatches": 4},
            **{"loss_mean": "sequence", "importance_level": "geometric"},
        },
    ),
    "cispo": AlgorithmPreset(
        "GRPO advantages on log π, weighted by the clipped ratio to the behaviour policy, which cuts off no token's "
        "gradient (arXiv 2506.13585).",
        compares_within_group=True,
        defaults={"clip_low": 1.0, "clip_high": 4.0, "minibatches": 4},
    ),
    "m2po": AlgorithmPreset(
        "GRPO advantages without a clip; of the tokens that a clip would consider, those furthest off policy are "
        "masked until the second moment of the log ratio is below a bound (arXiv 2510.01161).",
        compares_within_group=True,
        defaults={"importance": "second_moment"},
    ),
}


def algorithm_preset(name: str) -> AlgorithmPreset:
    """The preset of that name. Raises `InvalidRequest`, which lists the known names."""
    if name not in ALGORITHMS:
        raise InvalidRequest(
            f"unknown algorithm {name!r}; known: {', '.join(sorted(ALGORITHMS))}", param="hyperparameters.algorithm"
        )
    return ALGORITHMS[name]
