"""What completions earn in the ReMax evidence: the adder's own reward or a random table's, with offsets of prompts.

Everything follows from the seed, the prompt's row and the completion's tokens, by a hash: the same completion of the
same prompt always earns the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal

from headrace_core.types.trajectory import Completion, Group

OFFSET = 5.0
"""Deviation of the prompts' offsets where there are any: the rewards themselves vary by 1 or less."""
Baseline = Callable[[float, float], float]
"""(sampled reward, greedy reward) → what is given to the trainer as the greedy completion's."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """One kind of reward."""

    kind: Literal["task", "normal", "binary"]
    """The adder's own, 0 or 1; a draw of N(0, 1); or 1 with chance `success`, else 0."""
    offset: float = 0.0
    """Deviation of the normal draw that each prompt adds to the rewards of all its completions."""
    success: float = 0.0

    @property
    def name(self) -> str:
        """For a table or a legend."""
        kind = f"binary {self.success:g}" if self.kind == "binary" else self.kind
        return f"{kind}, offsets of {self.offset:g}" if self.offset else kind

    def of(self, group: Group, completion: Completion, seed: int) -> float:
        """The completion's reward, its prompt's offset included."""
        added = self.offset * _normal(_chance(seed, group.row, b"")) if self.offset else 0.0
        return self._own(group, completion, seed) + added

    def _own(self, group: Group, completion: Completion, seed: int) -> float:
        if self.kind == "task":
            assert completion.reward is not None, "the adder's reward is a number for every completion"
            return completion.reward
        chance = _chance(seed, group.row, completion.token_ids.astype("<i4").tobytes())
        return _normal(chance) if self.kind == "normal" else float(chance < self.success)


def greedy_baseline(sampled: float, greedy: float) -> float:
    """ReMax's."""
    return greedy


def no_baseline(sampled: float, greedy: float) -> float:
    """Plain REINFORCE's."""
    return 0.0


def looking_baseline(sampled: float, greedy: float) -> float:
    """One that looks at the sample, and so is biased: it takes half of the mean gradient."""
    return (sampled + greedy) / 2


def rewarded(group: Group, rewards: Rewards, baseline: Baseline, seed: int) -> Group:
    """The same group, of one completion, with these rewards, and `baseline`'s in place of the greedy one's."""
    (sampled,) = group.completions
    reward = rewards.of(group, sampled, seed)
    greedy = group.greedy
    if greedy is not None:
        greedy = replace(greedy, reward=baseline(reward, rewards.of(group, greedy, seed)))
    return replace(group, completions=(replace(sampled, reward=reward),), greedy=greedy)


def _normal(chance: float) -> float:
    return NormalDist().inv_cdf(chance)


def _chance(seed: int, row: int, tokens: bytes) -> float:
    """Uniform in (0, 1), never an end."""
    digest = blake2b(f"{seed}:{row}:".encode() + tokens, digest_size=6).digest()
    return (int.from_bytes(digest, "little") + 0.5) / 2**48
