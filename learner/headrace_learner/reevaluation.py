"""Recomputes rewards that depend on a reference answer's likelihood, for the policy being trained instead of the older
one that scored the answer.

    J = E_{z~π}[f(π(y*|x, z))]. Off policy, the reasoning z is weighted by π_prox/π_b, and f is evaluated at π_prox. The
    answer y* needs no importance weight: it is given, so that its likelihood under π_prox can simply be computed.

    groups ─► answers scored by an older version ─► a forward pass without gradient ─► groups as if this version had
              scored them: log-probabilities, and rewards by `Likelihood`, also of greedy completions

Nothing is recomputed for answers that this version has scored, for rewards that are not affine in the likelihood, and
unless `proximal` is `recompute`, because the other values exist to avoid forward passes before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Completion, Group

from .algorithms.batch import MiniBatch, forward_only
from .algorithms.token_selection import Passage


def reevaluated(
    groups: Sequence[Group], version: int, settings: Hyperparameters, logprobs: Callable[[MiniBatch], Tensor]
) -> list[Group]:
    """The groups with recomputed rewards, for an update of policy `version`.

    `logprobs` gives that policy's natural log-probabilities, [rows of the minibatch].
    """
    passages = list(_outdated(groups, version)) if settings.proximal == "recompute" else []
    if not passages:
        return list(groups)
    recomputed = logprobs(forward_only([p for *_, p in passages], settings.token_budget)).float().cpu().numpy()
    by_completion = {(place, number): recomputed[p.rows] for place, number, p in passages}
    return [_group(group, place, by_completion) for place, group in enumerate(groups)]


def reward_shift(given: Sequence[Group], used: Sequence[Group]) -> float | None:
    """Mean of (reward trained on − reward given) over the recomputed completions; None if there are none."""
    pairs = [
        (a, b) for g, u in zip(given, used, strict=True) for a, b in zip(g.completions, u.completions, strict=True)
    ]
    shifts = [b.reward - a.reward for a, b in pairs if a is not b and a.reward is not None and b.reward is not None]
    return fmean(shifts) if shifts else None


def _outdated(groups: Sequence[Group], version: int) -> Iterator[tuple[int, int, Passage]]:
    """Yields (index of the group, number of the completion, its answer tokens) of each answer to score again.

    The greedy completion's number comes after the others.
    """
    rows = 0
    for place, group in enumerate(groups):
        for number, completion in enumerate(_all(group)):
            likelihood, answer = completion.likelihood, np.flatnonzero(completion.answer)
            if completion.reward is None or likelihood is None or not likelihood.affine:
                continue
            if (completion.versions[answer] == version).all():
                continue
            ids = np.concatenate([group.prompt_ids, completion.token_ids])
            answer_rows = slice(rows, rows + len(answer))
            yield place, number, Passage(ids=ids, targets_at=answer + len(group.prompt_ids), rows=answer_rows)
            rows = answer_rows.stop


def _all(group: Group) -> tuple[Completion, ...]:
    return group.completions if group.greedy is None else (*group.completions, group.greedy)


def _group(group: Group, place: int, by_completion: dict[tuple[int, int], npt.NDArray[np.float32]]) -> Group:
    every = [
        _completion(c, by_completion[place, number]) if (place, number) in by_completion else c
        for number, c in enumerate(_all(group))
    ]
    size = len(group.completions)
    return replace(group, completions=tuple(every[:size]), greedy=None if group.greedy is None else every[size])


def _completion(completion: Completion, answer_logprobs: npt.NDArray[np.float32]) -> Completion:
    """The completion with new log-probabilities of its answer, and the reward that follows from them."""
    likelihood, answer = completion.likelihood, completion.answer
    assert likelihood is not None
    assert completion.reward is not None
    logprobs = completion.logprobs.copy()
    logprobs[answer] = answer_logprobs
    change = likelihood.value(answer_logprobs.tolist()) - likelihood.value(completion.logprobs[answer].tolist())
    return replace(completion, logprobs=logprobs, reward=completion.reward + likelihood.coefficient * change)
