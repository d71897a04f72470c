"""Advantage functions: what the completions of a step earned in, the advantage of each of its tokens out.

They are pure: rewards, penalties and values in, arrays out; no model, no policy version. A completion whose reward is
not applicable is not among them at all: it counts in no mean and in no normalisation. One all of whose tokens are too
old is: in a group's baseline its reward says something about its neighbours, though it has no token to teach with.
Reference answers are not looked at: their tokens are in no column here.

Shape suffix: N contributing completion tokens of the step, in admission order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]

_EPSILON = 1e-6
"""Keeps rewards that hardly differ from dividing by nothing; far below any reward scale in use."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One completion with a reward; its contributing tokens are `tokens` of the step's columns."""

    reward: float
    tokens: slice
    greedy: float | None = None
    """Reward of the group's greedy completion, where the algorithm wants one."""

    @property
    def length(self) -> int:
        """How many of its tokens contribute."""
        return int(self.tokens.stop - self.tokens.start)


@dataclass(frozen=True, slots=True)
class Earned:
    """All that an advantage function may look at."""

    groups: Sequence[Sequence[Trajectory]]
    penalties_N: Column
    """Subtracted from each token's reward: the reference KL with its coefficient, zero without one."""
    values_N: Column | None = None
    """The critic's estimate of the return from before each token on; None without a critic."""
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip: float | None = None
    """A reward's difference to its baseline is clamped to ± this; None leaves it alone."""

    def clamped(self, differences: Column) -> Column:
        """The same, within ± `clip`."""
        return differences if self.clip is None else np.clip(differences, -self.clip, self.clip)


@dataclass(frozen=True, slots=True)
class Advantages:
    """What the policy learns from, and the critic."""

    advantages_N: Column
    returns_N: Column | None = None
    """Targets of the critic; None without one."""


AdvantageFunction = Callable[[Earned], Advantages]


def grpo(earned: Earned) -> Advantages:
    """A = (s − mean) / (std + ε) over the group, the same for every token; s is the reward minus all penalties.

    (arXiv 2402.03300.) The deviation is that of the population (divisor n), so that one completion alone has
    advantage 0, not NaN.
    """
    return _of_completions(earned, lambda scores: (scores - scores.mean()) / (scores.std() + _EPSILON))


def dr_grpo(earned: Earned) -> Advantages:
    """A = s − mean over the group: a deviation in the divisor favours prompts that are too easy or too hard.

    (arXiv 2503.20783.)
    """
    return _of_completions(earned, lambda scores: scores - scores.mean())


def rloo(earned: Earned) -> Advantages:
    """A_i = s_i − mean of the group's other scores, an unbiased baseline (arXiv 2402.14740); 0 for one alone."""

    def left_out(scores: Column) -> Column:
        return (scores - scores.mean()) * len(scores) / max(1, len(scores) - 1)

    return _of_completions(earned, left_out)


def remax(earned: Earned) -> Advantages:
    """A_t = clamp(r − r(greedy)) − Σ_{t' ≥ t} γ^{t'−t}·penalty: the prompt's greedy completion is the baseline.

    (arXiv 2310.10505; penalties are returns to go, as in its published code.) Raises ValueError for a trajectory
    without a greedy reward.
    """
    found = _to_go(-earned.penalties_N, earned)
    for trajectory in _all(earned):
        if trajectory.greedy is None:
            raise ValueError("ReMax needs the greedy completion's reward of every group")
        found[trajectory.tokens] += earned.clamped(np.array([trajectory.reward - trajectory.greedy]))
    return Advantages(found)


def reinforce_pp(earned: Earned) -> Advantages:
    """Returns to go, normalised over all tokens of the batch: no group, no critic (REINFORCE++, arXiv 2501.03262)."""
    return Advantages(earned.clamped(_normalised(_to_go(_token_rewards(earned), earned))))


def gae(earned: Earned) -> Advantages:
    """Generalised advantage estimation over the contributing tokens (arXiv 1506.02438), then normalised over the batch.

    δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1}, V = 0 after the last token, return_t = A_t + V_t. The reward
    comes with the last token, penalties with their own. Raises ValueError without values.
    """
    if earned.values_N is None:
        raise ValueError("generalised advantage estimation needs a critic's values")
    rewards_N, values_N = _token_rewards(earned), earned.values_N
    found = np.zeros_like(rewards_N)
    for trajectory in _all(earned):
        after, following = 0.0, 0.0
        for t in reversed(range(trajectory.tokens.start, trajectory.tokens.stop)):
            delta = rewards_N[t] + earned.gamma * following - values_N[t]
            found[t] = after = delta + earned.gamma * earned.gae_lambda * after
            following = values_N[t]
    return Advantages(earned.clamped(_normalised(found)), found + values_N)


# ── shared pieces ────────────────────────────────────────────────────────────────────────────────────────────────────


def _all(earned: Earned) -> list[Trajectory]:
    return [trajectory for group in earned.groups for trajectory in group]


def _of_completions(earned: Earned, compared: Callable[[Column], Column]) -> Advantages:
    """One advantage a completion, from the group's scores, for all of its tokens."""
    found = np.zeros_like(earned.penalties_N)
    for group in earned.groups:
        if not group:
            continue
        scores = np.array([t.reward - earned.penalties_N[t.tokens].sum() for t in group])
        for trajectory, advantage in zip(group, earned.clamped(compared(scores)), strict=True):
            found[trajectory.tokens] = advantage
    return Advantages(found)


def _token_rewards(earned: Earned) -> Column:
    """Each token's penalty, negative, and the completion's reward with its last token."""
    rewards_N = -earned.penalties_N
    for trajectory in _all(earned):
        if trajectory.length:
            rewards_N[trajectory.tokens.stop - 1] += trajectory.reward
    return rewards_N


def _to_go(rewards_N: Column, earned: Earned) -> Column:
    """G_t = r_t + γ·G_{t+1}, within each completion."""
    found = np.zeros_like(rewards_N)
    for trajectory in _all(earned):
        after = 0.0
        for t in reversed(range(trajectory.tokens.start, trajectory.tokens.stop)):
            found[t] = after = rewards_N[t] + earned.gamma * after
    return found


def _normalised(column_N: Column) -> Column:
    """To mean 0 and deviation 1 over all tokens."""
    return (column_N - column_N.mean()) / (column_N.std() + _EPSILON) if len(column_N) else column_N
