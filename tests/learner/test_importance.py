"""Staleness weights against values worked out by hand, and the second moment against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace_learner.algorithms.importance_weights import StalenessWeights, staleness_weights

from .cases import hyperparameters

ROWS = [0, 1, 0, 1, 2]
RATIOS = [2.0, 0.25, 8.0, 1.0, 3.0]
"""Row 0: product 16, geometric mean 4; row 1: ¼ and ½; row 2: one token."""


def weights(
    ratios: list[float],
    rows: list[int],
    advantages: list[float] | None = None,
    answer: list[bool] | None = None,
    **settings: object,
) -> StalenessWeights:
    """Of tokens with π_prox/π_b as given; with advantages of no sign but the ratio's, all are acted on."""
    behaviour = torch.linspace(-1, -3, len(ratios)) if ratios else torch.zeros(0)
    proximal = (behaviour + torch.tensor(ratios).log()).requires_grad_()
    given = (proximal - behaviour).detach() if advantages is None else torch.tensor(advantages)
    rows_N, answer_N = torch.tensor(rows, dtype=torch.int64), torch.zeros(len(rows), dtype=torch.bool)
    if answer is not None:
        answer_N = torch.tensor(answer)
    found = staleness_weights(proximal, behaviour, rows_N, answer_N, hyperparameters(**settings), given)
    assert not found.importance_N.requires_grad
    return found


@pytest.mark.parametrize(
    ("importance", "level", "expected", "cut"),
    [
        ("truncate", "token", [2, 0.25, 3, 1, 3], [0, 0, 1, 0, 0]),
        ("truncate", "sequence", [3, 0.25, 3, 0.25, 3], [1, 0, 1, 0, 0]),
        ("truncate", "geometric", [3, 0.5, 3, 0.5, 3], [1, 0, 1, 0, 0]),
        ("mask", "token", [2, 0, 0, 1, 3], [0, 1, 1, 0, 0]),
        ("mask", "sequence", [0, 0, 0, 0, 3], [1, 1, 1, 1, 0]),
        ("mask", "geometric", [0, 0.5, 0, 0.5, 3], [1, 0, 1, 0, 0]),
        ("none", "token", [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ("none", "sequence", [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ("none", "geometric", [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        # (log w)² is .48, 1.9, 4.3, 0, 1.2; that of 0 is not looked at: the smallest 1 and 2 have means .48 and .84
        ("second_moment", "token", [2, 0, 0, 1, 0], [0, 1, 1, 0, 1]),
        # 7.7 (twice), 1.9 (twice), 1.2: the smallest alone is above 0.6
        ("second_moment", "sequence", [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),
        # 1.9 (twice), .48 (twice), 1.2: .48, .48 and .72
        ("second_moment", "geometric", [0, 0.5, 0, 0.5, 0], [1, 0, 1, 0, 1]),
    ],
)
def test_by_hand(importance: str, level: str, expected: list[float], cut: list[int]) -> None:
    found = weights(
        RATIOS, ROWS, [1, -1, 1, -1, 1], importance=importance, importance_level=level, importance_cap=3.0000001,
        second_moment=0.6,
    )  # fmt: skip
    assert found.importance_N.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.cut_N.tolist() == [bool(c) for c in cut]


@pytest.mark.parametrize("importance", ["truncate", "mask", "second_moment"])
@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [2.0, 0.25, 1, 1, 3, 1]),
        ("sequence", [0.5, 0.5, 0.5, 0.5, 3, 3]),
        ("geometric", [0.5**0.5] * 4 + [3] * 2),
    ],
)
def test_an_answer_has_the_weight_of_its_reasoning(importance: str, level: str, expected: list[float]) -> None:
    """Two completions: reasoning of two tokens with an answer of two, and one with one. Answers have no ratio."""
    ratios, answer = [2.0, 0.25, 50.0, 0.01, 3.0, 9.0], [False, False, True, True, False, True]
    found = weights(
        ratios, [0, 0, 0, 0, 1, 1], [1.0] * 6, answer,
        importance=importance, importance_level=level, importance_cap=10.0, second_moment=9.0,
    )  # fmt: skip
    assert found.importance_N.tolist() == pytest.approx(expected)
    assert not found.cut_N.any()


def test_an_answer_of_no_reasoning_that_contributes_weighs_one() -> None:
    for level in ("token", "sequence", "geometric"):
        assert weights([7.0], [0], answer=[True], importance_level=level).importance_N.tolist() == [1.0]


def test_a_weight_on_the_edge_of_the_mask_is_inside() -> None:
    found = weights([1.0, 1.0 - 1e-3, 1.0 + 1e-3], [0, 1, 2], importance="mask", importance_cap=1.0)
    assert found.importance_N.tolist() == pytest.approx([1, 0, 0])


@pytest.mark.parametrize("importance", ["truncate", "mask", "second_moment", "none"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_no_tokens_have_no_weights(importance: str, level: str) -> None:
    found = weights([], [], importance=importance, importance_level=level)
    assert (len(found.importance_N), len(found.cut_N)) == (0, 0)


def test_the_second_moment_looks_at_what_a_trust_region_acts_on() -> None:
    """A > 0 with w > 1, and A < 0 with w < 1; the others stay however far off they are, and leave the mean alone."""
    ratios = [1.1, 9.0, 9.0, 0.1, 0.1, 9.0]
    found = weights(ratios, list(range(6)), [1, 1, -1, -1, 1, 0], importance="second_moment", second_moment=0.04)
    assert found.cut_N.tolist() == [False, True, False, True, False, False]
    assert found.importance_N.tolist() == pytest.approx([1.1, 0, 9, 0, 0.1, 9])


LOGS = st.lists(st.floats(-2, 2), min_size=1, max_size=8)


@checks(deadline=None, derandomize=True)
@given(LOGS, st.floats(0.01, 2))
def test_the_second_moment_masks_as_few_as_can_be(logs: list[float], bound: float) -> None:
    """No larger set of tokens has a mean square within the bound; of those as large, none has a smaller one."""
    proximal = torch.tensor(logs, dtype=torch.float64)
    squares = proximal.square().tolist()
    means = {
        kept: sum(squares[i] for i in kept) / len(kept)
        for size in range(1, len(logs) + 1)
        for kept in combinations(range(len(logs)), size)
    }
    assume(all(abs(mean - bound) > 1e-9 for mean in means.values()))
    settings = hyperparameters(importance="second_moment", second_moment=bound)
    rows_N, advantages_N = torch.arange(len(logs)), proximal.sign()
    assume(all(squares))
    no_answer_N = torch.zeros(len(logs), dtype=torch.bool)
    found = staleness_weights(proximal, torch.zeros_like(proximal), rows_N, no_answer_N, settings, advantages_N)
    kept = tuple(torch.nonzero(~found.cut_N)[:, 0].tolist())
    within = [chosen for chosen, mean in means.items() if mean <= bound]
    assert len(kept) == max((len(chosen) for chosen in within), default=0)
    if kept:
        assert means[kept] == pytest.approx(min(means[c] for c in within if len(c) == len(kept)))
        assert found.importance_N[~found.cut_N].tolist() == pytest.approx(proximal[~found.cut_N].exp().tolist())


@checks(deadline=None, derandomize=True)
@given(LOGS, st.floats(1, 5), st.sampled_from(["token", "sequence", "geometric"]))
def test_bounds_hold_and_rows_share_a_weight(logs: list[float], cap: float, level: str) -> None:
    rows = [i // 3 for i in range(len(logs))]
    ratios = torch.tensor(logs).exp().tolist()
    truncated = weights(ratios, rows, importance="truncate", importance_level=level, importance_cap=cap).importance_N
    masked = weights(ratios, rows, importance="mask", importance_level=level, importance_cap=cap).importance_N
    assert truncated.max() <= cap * (1 + 1e-6)
    assert ((masked == 0) | ((masked <= cap * (1 + 1e-6)) & (masked >= (1 - 1e-6) / cap))).all()
    assert ((masked == 0) | (masked == truncated)).all()
    if level != "token":
        for found in (truncated, masked):
            assert all(len(set(found[torch.tensor(rows) == row].tolist())) == 1 for row in set(rows))
