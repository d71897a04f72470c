"""Rewards of the ReMax evidence: the adder's own or those of a random table, with an offset per prompt.

Rewards are a hash of the seed, the prompt's row and the completion's tokens: the same completion of the same prompt
always has the same reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal

from headrace_core.types.trajectory import Completion, Group

OFFSET = 5.0
"""Standard deviation of the offsets, if there are any; the rewards themselves vary by 1 or less."""
Baseline = Callable[[float, float], float]
"""(sampled reward, greedy reward) → the reward that the trainer is given as the greedy completion's, its baseline."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """One kind of reward."""

    kind: Literal["task", "normal", "binary"]
    """The adder's own reward, 0 or 1; a draw from N(0, 1); or 1 with probability `success`, else 0."""
    offset: float = 0.0
    """Standard deviation of the normal draw that is added to the rewards of all completions of a prompt."""
    success: float = 0.0

    @property
    def name(self) -> str:
        """Label in tables and legends."""
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
    """The baseline of ReMax."""
    return greedy


def no_baseline(sampled: float, greedy: float) -> float:
    """The baseline of plain REINFORCE: zero."""
    return 0.0


def looking_baseline(sampled: float, greedy: float) -> float:
    """A baseline that depends on the sample and is therefore biased: it removes half of the mean gradient."""
    return (sampled + greedy) / 2


def rewarded(group: Group, rewards: Rewards, baseline: Baseline, seed: int) -> Group:
    """The group, of one completion, with these rewards, and with `baseline` as the reward of the greedy completion."""
    (sampled,) = group.completions
    reward = rewards.of(group, sampled, seed)
    greedy = group.greedy
    if greedy is not None:
        greedy = replace(greedy, reward=baseline(reward, rewards.of(group, greedy, seed)))
    return replace(group, completions=(replace(sampled, reward=reward),), greedy=greedy)


def _normal(chance: float) -> float:
    return NormalDist().inv_cdf(chance)


def _chance(seed: int, row: int, tokens: bytes) -> float:
    """Uniform in (0, 1), never 0 or 1."""
    digest = blake2b(f"{seed}:{row}:".encode() + tokens, digest_size=6).digest()
    return (int.from_bytes(digest, "little") + 0.5) / 2**48
