"""Advantage functions: a group in, the advantage of every token of every completion out.

An advantage function is pure: it sees one group and nothing else. None in place of an array leaves that completion out
of the gradient altogether (its reward was not applicable); it then counts in no mean and no normalisation either.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headrace_core.trajectory import Group

TokenAdvantages = npt.NDArray[np.float32]
"""[T] of one completion, environment tokens included (the batch masks them)."""

AdvantageFunction = Callable[[Group], tuple[TokenAdvantages | None, ...]]
"""One entry for each completion of the group, in its order."""

_EPSILON = 1e-6
"""Keeps a group whose rewards hardly differ from dividing by nothing; far below any reward scale in use."""


def grpo(group: Group) -> tuple[TokenAdvantages | None, ...]:
    """A = (r − mean) / (std + ε) over the group's rewards, the same for every token (GRPO, arXiv 2402.03300).

    The standard deviation is that of the population (divisor n), so that a group of one has advantage 0, not NaN.
    """
    rewards = np.array([c.reward for c in group.completions if c.reward is not None], np.float64)
    mean, scale = (rewards.mean(), rewards.std() + _EPSILON) if len(rewards) else (0.0, 1.0)
    return tuple(
        None if c.reward is None else np.full(len(c), (c.reward - mean) / scale, np.float32) for c in group.completions
    )
