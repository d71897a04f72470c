"""Rewards made of a reference answer's likelihood, of the policy that is trained instead of the one that scored.

    J = E_{z~π}[f(π(y*|x, z))]: off-policy, z is weighted by π_prox/π_b, and f is π_prox's. y* needs no weight: it is
    given, so that its likelihood under π_prox can be computed, and need not be estimated from π_b's.

    groups ─► answers scored by an older version ─► a forward pass without gradient ─► groups as if this version had
              scored them: log-probabilities, and rewards by `Likelihood`, also of greedy completions

Nothing is done, and nothing computed, for answers that this version has scored, for rewards that are not affine in the
likelihood, and where `proximal` is not `recompute`: the other two settings are there to compute nothing beforehand.
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

from .algorithms.batch import MiniBatch, to_read
from .algorithms.token_selection import Passage


def reevaluated(
    groups: Sequence[Group], version: int, settings: Hyperparameters, logprobs: Callable[[MiniBatch], Tensor]
) -> list[Group]:
    """The same groups, for an update of policy `version`; `logprobs` are that policy's, [rows of the minibatch]."""
    passages = list(_outdated(groups, version)) if settings.proximal == "recompute" else []
    if not passages:
        return list(groups)
    found = logprobs(to_read([p for *_, p in passages], settings.token_budget)).float().cpu().numpy()
    renewed = {(place, number): found[p.rows] for place, number, p in passages}
    return [_group(group, place, renewed) for place, group in enumerate(groups)]


def reward_shift(given: Sequence[Group], used: Sequence[Group]) -> float | None:
    """Mean difference of the rewards trained on and those given, over the completions that have another answer now."""
    pairs = [
        (a, b) for g, u in zip(given, used, strict=True) for a, b in zip(g.completions, u.completions, strict=True)
    ]
    shifts = [b.reward - a.reward for a, b in pairs if a is not b and a.reward is not None and b.reward is not None]
    return fmean(shifts) if shifts else None


def _outdated(groups: Sequence[Group], version: int) -> Iterator[tuple[int, int, Passage]]:
    """(place of the group, number of the completion, its answer's tokens); a greedy one comes after the others."""
    rows = 0
    for place, group in enumerate(groups):
        for number, completion in enumerate(_all(group)):
            likelihood, answer = completion.likelihood, np.flatnonzero(completion.answer)
            if completion.reward is None or likelihood is None or not likelihood.affine:
                continue
            if (completion.versions[answer] == version).all():
                continue
            ids = np.concatenate([group.prompt_ids, completion.token_ids])
            taken = slice(rows, rows + len(answer))
            yield place, number, Passage(ids=ids, targets_at=answer + len(group.prompt_ids), rows=taken)
            rows = taken.stop


def _all(group: Group) -> tuple[Completion, ...]:
    return group.completions if group.greedy is None else (*group.completions, group.greedy)


def _group(group: Group, place: int, renewed: dict[tuple[int, int], npt.NDArray[np.float32]]) -> Group:
    every = [
        _completion(c, renewed[place, number]) if (place, number) in renewed else c
        for number, c in enumerate(_all(group))
    ]
    size = len(group.completions)
    return replace(group, completions=tuple(every[:size]), greedy=None if group.greedy is None else every[size])


def _completion(completion: Completion, found: npt.NDArray[np.float32]) -> Completion:
    likelihood, answer = completion.likelihood, completion.answer
    assert likelihood is not None
    assert completion.reward is not None
    logprobs = completion.logprobs.copy()
    logprobs[answer] = found
    change = likelihood.value(found.tolist()) - likelihood.value(completion.logprobs[answer].tolist())
    return replace(completion, logprobs=logprobs, reward=completion.reward + likelihood.coefficient * change)
