"""Small settings, and synthetic groups whose every figure the test chooses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace_core.hyperparameters import Hyperparameters
from headrace_core.trajectory import Completion, Group, sampled_completion

VOCAB = 32


def hyperparameters(**given: object) -> Hyperparameters:
    """Small settings; `given` changes some."""
    small = {
        "batch_size": 4,
        "group_size": 4,
        "n_steps": 6,
        "learning_rate": 1e-2,
        "max_staleness": 2,
        "max_tokens": 16,
    }
    return Hyperparameters.model_validate(small | given)


def random_group(
    group_id: int, versions: Sequence[int] = (0,), completions: int = 4, rewards: Sequence[float | None] | None = None
) -> Group:
    """A prompt and completions of random tokens and lengths; each completion's versions ascend through `versions`."""
    rng = np.random.default_rng(group_id)
    if rewards is None:
        rewards = [float(rng.integers(0, 2)) for _ in range(completions)]
    made: list[Completion] = []
    for reward in rewards:
        size = int(rng.integers(3, 12))
        made.append(
            sampled_completion(
                rng.integers(0, VOCAB, size).astype(np.int32),
                np.log(rng.uniform(0.02, 0.06, size)).astype(np.float32),
                np.array([versions[i * len(versions) // size] for i in range(size)], np.int32),
                "stop",
                reward,
                {} if reward is None else {"right": reward},
            )
        )
    prompt = rng.integers(0, VOCAB, int(rng.integers(2, 6))).astype(np.int32)
    return Group(group_id, 1, group_id, min(versions), prompt, tuple(made))
