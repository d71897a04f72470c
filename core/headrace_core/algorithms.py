"""The algorithms by name: what every part but the learner needs to know of them.

The gateway refuses an unknown name at submission, a rollout worker asks whether a greedy completion is wanted; neither
imports torch for it. The learner implements exactly these names (a test holds the two lists together).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class AlgorithmFacts:
    """One preset, seen from outside the learner."""

    description: str
    wants_greedy: bool = False
    """Each group needs a greedy completion beside the sampled ones."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that this algorithm sets where the user does not."""


ALGORITHMS: dict[str, AlgorithmFacts] = {
    "grpo": AlgorithmFacts("Advantages normalised within the group; decoupled clipped policy loss, mean over tokens."),
}


def algorithm_facts(name: str) -> AlgorithmFacts:
    """What is known of an algorithm. Raises `InvalidRequest` that names the known ones."""
    if name not in ALGORITHMS:
        raise InvalidRequest(
            f"unknown algorithm {name!r}; known: {', '.join(sorted(ALGORITHMS))}", param="hyperparameters.algorithm"
        )
    return ALGORITHMS[name]
