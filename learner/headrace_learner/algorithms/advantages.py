"""Advantage functions: what the completions of a step earned in, the advantage of each of its tokens out.

They are pure: rewards, penalties and values in, arrays out; no model, no policy version. A completion whose reward is
not applicable is not among them at all: it counts in no mean and in no normalisation. One all of whose tokens are too
old is: in a group's baseline its reward says something about its neighbours, though it has no token to teach with.
Reference answers are not looked at: their tokens are in no column here.

Penalties are subtracted after everything that normalises or clamps, in the advantage's own units: what the divergence
from the base model does to a gradient is linear in its coefficient, whatever the rewards are. Normalised together with
the rewards, the coefficient would cancel where rewards are equal, and noise of the estimate be learned at full size.

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
class AdvantageInputs:
    """All that an advantage function may look at."""

    groups: Sequence[Sequence[Trajectory]]
    penalties_N: Column
    """Of each token: the estimated divergence from the base model times its coefficient, zero without one."""
    values_N: Column | None = None
    """The critic's estimate of the rewards to come, from before each token on; None without a critic."""
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip: float | None = None
    """A reward's difference to its baseline is clamped to ± this; None leaves it alone."""
    earlier_K: Column | None = None
    """Of each trajectory, in order: penalties of its tokens before the first that contributes; None: of none.

    Penalties of other tokens that do not contribute are with those of the last one before them that does.
    """
    after_K: Column | None = None
    """Of each trajectory, the critic's value of what would have come after its last token; None: nothing would."""

    def clamped(self, differences: Column) -> Column:
        """The same, within ± `clip`."""
        return differences if self.clip is None else np.clip(differences, -self.clip, self.clip)


@dataclass(frozen=True, slots=True)
class Advantages:
    """What the policy learns from, and the critic."""

    advantages_N: Column
    returns_N: Column | None = None
    """Targets of the critic; None without one."""


AdvantageFunction = Callable[[AdvantageInputs], Advantages]


def grpo(earned: AdvantageInputs) -> Advantages:
    """A = (r − mean r) / (std r + ε) − (P − mean P) over the group, the same for every token; P sums the penalties.

    (arXiv 2402.03300; there the divergence is in the loss.) The deviation is that of the population (divisor n), so
    that one completion alone has advantage 0, not NaN.
    """
    return _of_completions(earned, _standardised, _less_mean)


def dr_grpo(earned: AdvantageInputs) -> Advantages:
    """A = s − mean s over the group, s = r − P: a deviation in the divisor favours prompts too easy or too hard.

    (arXiv 2503.20783.)
    """
    return _of_completions(earned, _less_mean, _less_mean)


def rloo(earned: AdvantageInputs) -> Advantages:
    """A_i = s_i − mean of the group's other s, s = r − P: an unbiased baseline (arXiv 2402.14740); 0 for one alone."""
    return _of_completions(earned, _less_mean_of_others, _less_mean_of_others)


def remax(earned: AdvantageInputs) -> Advantages:
    """A_t = clamp(r − r(greedy)) − Σ_{t' ≥ t} γ^{t'−t}·penalty: the prompt's greedy completion is the baseline.

    (arXiv 2310.10505. Penalties are returns to go, which makes their part the gradient of the divergence of whole
    completions; the published code charges each token with its own penalty alone.) Raises ValueError for a trajectory
    without a greedy reward.
    """
    found = -_to_go(earned.penalties_N, earned)
    for trajectory in _all(earned):
        if trajectory.greedy is None:
            raise ValueError("ReMax needs the greedy completion's reward of every group")
        found[trajectory.tokens] += earned.clamped(np.array([trajectory.reward - trajectory.greedy]))
    return Advantages(found)


def reinforce_pp(earned: AdvantageInputs) -> Advantages:
    """Rewards to go, normalised over all tokens of the batch, minus penalties to go, of which their mean is taken off.

    No group, no critic (REINFORCE++, arXiv 2501.03262, which normalises both together).
    """
    rewards_N = earned.clamped(_normalised(_to_go(_final_rewards(earned), earned)))
    return Advantages(rewards_N - _less_mean(_to_go(earned.penalties_N, earned)))


def gae(earned: AdvantageInputs) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438), normalised over the batch, minus penalties to go.

    δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1}, return_t = A_t + V_t. After the last token V is 0, or what
    `after_K` says, as of completions that were cut off (arXiv 1712.00378). The reward comes with the last token;
    the critic learns rewards alone, and penalties have their mean for a baseline. Raises ValueError without values.
    """
    if earned.values_N is None:
        raise ValueError("generalised advantage estimation needs a critic's values")
    rewards_N, values_N = _final_rewards(earned), earned.values_N
    found = np.zeros_like(rewards_N)
    after_K = np.zeros(len(_all(earned))) if earned.after_K is None else earned.after_K
    for trajectory, following in zip(_all(earned), after_K.tolist(), strict=True):
        after = 0.0
        for t in reversed(range(trajectory.tokens.start, trajectory.tokens.stop)):
            delta = rewards_N[t] + earned.gamma * following - values_N[t]
            found[t] = after = delta + earned.gamma * earned.gae_lambda * after
            following = values_N[t]
    penalties_N = _less_mean(_to_go(earned.penalties_N, earned))
    return Advantages(earned.clamped(_normalised(found)) - penalties_N, found + values_N)


# ── shared pieces ────────────────────────────────────────────────────────────────────────────────────────────────────


def _all(earned: AdvantageInputs) -> list[Trajectory]:
    return [trajectory for group in earned.groups for trajectory in group]


def _of_completions(
    earned: AdvantageInputs, of_rewards: Callable[[Column], Column], of_penalties: Callable[[Column], Column]
) -> Advantages:
    """One advantage a completion, for all of its tokens, from the group's rewards and its sums of penalties."""
    found = np.zeros_like(earned.penalties_N)
    earlier_K = np.zeros(len(_all(earned))) if earned.earlier_K is None else earned.earlier_K
    first = 0
    for group in earned.groups:
        if not group:
            continue
        rewards = np.array([t.reward for t in group])
        penalties = np.array([earned.penalties_N[t.tokens].sum() for t in group])
        penalties += earlier_K[first : first + len(group)]
        first += len(group)
        advantages = earned.clamped(of_rewards(rewards)) - of_penalties(penalties)
        for trajectory, advantage in zip(group, advantages, strict=True):
            found[trajectory.tokens] = advantage
    return Advantages(found)


def _final_rewards(earned: AdvantageInputs) -> Column:
    """The completion's reward with its last token, 0 with all others."""
    rewards_N = np.zeros_like(earned.penalties_N)
    for trajectory in _all(earned):
        if trajectory.length:
            rewards_N[trajectory.tokens.stop - 1] = trajectory.reward
    return rewards_N


def _to_go(rewards_N: Column, earned: AdvantageInputs) -> Column:
    """G_t = r_t + γ·G_{t+1}, within each completion."""
    found = np.zeros_like(rewards_N)
    for trajectory in _all(earned):
        after = 0.0
        for t in reversed(range(trajectory.tokens.start, trajectory.tokens.stop)):
            found[t] = after = rewards_N[t] + earned.gamma * after
    return found


def _less_mean(column: Column) -> Column:
    """Exactly 0 where all are equal: rounding of the mean must not give them a sign."""
    return column - column.mean() if len(column) and np.ptp(column) else np.zeros_like(column)


def _less_mean_of_others(column: Column) -> Column:
    return _less_mean(column) * len(column) / max(1, len(column) - 1)


def _standardised(column: Column) -> Column:
    return _less_mean(column) / (column.std() + _EPSILON)


def _normalised(column_N: Column) -> Column:
    """To mean 0 and deviation 1 over all tokens."""
    return _standardised(column_N) if len(column_N) else column_N
