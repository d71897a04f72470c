"""Advantage functions: from rewards, penalties and values of a step's completions to the advantage of each token.

They are pure functions of arrays: no model, no policy version. A completion whose reward is not applicable is left out,
and counts in no mean and no normalisation. A completion whose tokens are all too old is included: its reward still
informs the group's baseline, although no token of it is trained on. Reference answers are not included: the columns
here have no rows for their tokens.

Penalties are subtracted after all normalisation and clamping, in the units of the advantage, so that the effect of the
divergence from the base model on the gradient is linear in its coefficient, whatever the rewards are. If penalties were
normalised together with the rewards, the coefficient would cancel out where rewards are equal, and the noise of the
estimate would be amplified to full size.

Shape suffix: N contributing completion tokens of the step, in admission order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]

_EPSILON = 1e-6
"""Avoids a division by almost zero where rewards hardly differ; far below any reward scale in use."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One completion with a reward. `tokens`: the rows of its contributing tokens in the step's columns."""

    reward: float
    tokens: slice
    greedy: float | None = None
    """Reward of the group's greedy completion, where the algorithm wants one."""

    @property
    def length(self) -> int:
        """Number of contributing tokens."""
        return int(self.tokens.stop - self.tokens.start)


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """The inputs of an advantage function. K trajectories of all groups, in order."""

    groups: Sequence[Sequence[Trajectory]]
    penalties_N: Column
    """Estimated divergence from the base model at each token, times its coefficient; zero without one."""
    values_N: Column | None = None
    """The critic's value of the state before each token: the expected return from there; None without a critic."""
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip: float | None = None
    """The difference of a reward to its baseline is clamped to ± this; None: not clamped."""
    earlier_K: Column | None = None
    """Sum of each trajectory's penalties before its first contributing token; None: zero for all.

    Penalties of later tokens that do not contribute are included in the last contributing token before them.
    """
    after_K: Column | None = None
    """The critic's value of the state after each trajectory's last token; None: zero for all."""

    def clamped(self, differences: Column) -> Column:
        """`differences` clamped to ± `clip`."""
        return differences if self.clip is None else np.clip(differences, -self.clip, self.clip)


@dataclass(frozen=True, slots=True)
class Advantages:
    """The training targets: advantages for the policy, returns for the critic."""

    advantages_N: Column
    returns_N: Column | None = None
    """Targets of the critic; None without one."""


AdvantageFunction = Callable[[AdvantageInputs], Advantages]


def grpo(inputs: AdvantageInputs) -> Advantages:
    """A = (r − mean r) / (std r + ε) − (P − mean P) over the group, the same for every token; P sums the penalties.

    (arXiv 2402.03300; there the divergence is in the loss.) The standard deviation has the divisor n, so that a single
    completion has advantage 0, not NaN.
    """
    return _of_completions(inputs, _standardised, _centred)


def dr_grpo(inputs: AdvantageInputs) -> Advantages:
    """A = s − mean s over the group, s = r − P (arXiv 2503.20783).

    There is no division by the standard deviation, which would favour prompts that are too easy or too hard.
    """
    return _of_completions(inputs, _centred, _centred)


def rloo(inputs: AdvantageInputs) -> Advantages:
    """A_i = s_i − mean of the group's other s, s = r − P: an unbiased baseline (arXiv 2402.14740).

    A single completion has advantage 0.
    """
    return _of_completions(inputs, _centred_by_others, _centred_by_others)


def remax(inputs: AdvantageInputs) -> Advantages:
    """A_t = clamp(r − r(greedy)) − Σ_{t' ≥ t} γ^{t'−t}·penalty: the prompt's greedy completion is the baseline.

    (arXiv 2310.10505. Penalties are summed as returns to go, so that their part is the gradient of the divergence of
    whole completions; the published code uses each token's own penalty only.) Raises ValueError for a trajectory
    without a greedy reward.
    """
    advantages_N = -_to_go(inputs.penalties_N, inputs)
    for trajectory in _all(inputs):
        if trajectory.greedy is None:
            raise ValueError("ReMax needs the greedy completion's reward of every group")
        advantages_N[trajectory.tokens] += inputs.clamped(np.array([trajectory.reward - trajectory.greedy]))
    return Advantages(advantages_N)


def reinforce_pp(inputs: AdvantageInputs) -> Advantages:
    """Rewards to go, normalised over all tokens of the batch, minus centred penalties to go.

    Uses neither groups nor a critic (REINFORCE++, arXiv 2501.03262, which normalises rewards and penalties together).
    """
    rewards_N = inputs.clamped(_normalised(_to_go(_final_rewards(inputs), inputs)))
    return Advantages(rewards_N - _centred(_to_go(inputs.penalties_N, inputs)))


def gae(inputs: AdvantageInputs) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438), normalised over the batch, minus penalties to go.

    δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1}, return_t = A_t + V_t. After the last token V is that of
    `after_K`: 0, but for completions that were cut off (arXiv 1712.00378). The reward is at the last token. The critic
    learns rewards only; the baseline of penalties is their mean. Raises ValueError without values.
    """
    if inputs.values_N is None:
        raise ValueError("generalised advantage estimation needs a critic's values")
    rewards_N, values_N = _final_rewards(inputs), inputs.values_N
    advantages_N = np.zeros_like(rewards_N)
    after_K = np.zeros(len(_all(inputs))) if inputs.after_K is None else inputs.after_K
    for trajectory, next_value in zip(_all(inputs), after_K.tolist(), strict=True):
        next_advantage = 0.0
        for t in reversed(range(trajectory.tokens.start, trajectory.tokens.stop)):
            delta = rewards_N[t] + inputs.gamma * next_value - values_N[t]
            advantages_N[t] = next_advantage = delta + inputs.gamma * inputs.gae_lambda * next_advantage
            next_value = values_N[t]
    penalties_N = _centred(_to_go(inputs.penalties_N, inputs))
    return Advantages(inputs.clamped(_normalised(advantages_N)) - penalties_N, advantages_N + values_N)


# ── shared pieces ────────────────────────────────────────────────────────────────────────────────────────────────────


def _all(inputs: AdvantageInputs) -> list[Trajectory]:
    return [trajectory for group in inputs.groups for trajectory in group]


def _of_completions(
    inputs: AdvantageInputs, of_rewards: Callable[[Column], Column], of_penalties: Callable[[Column], Column]
) -> Advantages:
    """One advantage per completion, the same for all of its tokens.

    `of_rewards` maps the rewards of a group to advantages, `of_penalties` its summed penalties to what is subtracted.
    """
    advantages_N = np.zeros_like(inputs.penalties_N)
    earlier_K = np.zeros(len(_all(inputs))) if inputs.earlier_K is None else inputs.earlier_K
    first = 0
    for group in inputs.groups:
        if not group:
            continue
        rewards = np.array([t.reward for t in group])
        penalties = np.array([inputs.penalties_N[t.tokens].sum() for t in group])
        penalties += earlier_K[first : first + len(group)]
        first += len(group)
        advantages = inputs.clamped(of_rewards(rewards)) - of_penalties(penalties)
        for trajectory, advantage in zip(group, advantages, strict=True):
            advantages_N[trajectory.tokens] = advantage
    return Advantages(advantages_N)


def _final_rewards(inputs: AdvantageInputs) -> Column:
    """[N] the completion's reward at its last contributing token, 0 at all others."""
    rewards_N = np.zeros_like(inputs.penalties_N)
    for trajectory in _all(inputs):
        if trajectory.length:
            rewards_N[trajectory.tokens.stop - 1] = trajectory.reward
    return rewards_N


def _to_go(rewards_N: Column, inputs: AdvantageInputs) -> Column:
    """[N] returns to go G_t = r_t + γ·G_{t+1}, within each completion."""
    returns_N = np.zeros_like(rewards_N)
    for trajectory in _all(inputs):
        next_return = 0.0
        for t in reversed(range(trajectory.tokens.start, trajectory.tokens.stop)):
            returns_N[t] = next_return = rewards_N[t] + inputs.gamma * next_return
    return returns_N


def _centred(column: Column) -> Column:
    """x − mean x; exactly 0 if all are equal, because rounding of the mean must not give them a sign."""
    return column - column.mean() if len(column) and np.ptp(column) else np.zeros_like(column)


def _centred_by_others(column: Column) -> Column:
    """x_i − mean of the other x = (x_i − mean x) · n / (n − 1)."""
    return _centred(column) * len(column) / max(1, len(column) - 1)


def _standardised(column: Column) -> Column:
    """(x − mean x) / (std x + ε)."""
    return _centred(column) / (column.std() + _EPSILON)


def _normalised(column_N: Column) -> Column:
    """[N] with mean 0 and standard deviation 1 over all tokens; unchanged if there are none."""
    return _standardised(column_N) if len(column_N) else column_N
