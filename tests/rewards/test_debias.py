"""`debias`: unbiased over the flips of `noisy`, and refused where nothing is left to recover."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Score
from headrace_lab.rewards import score_once
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import build, validate

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "yes",
    "operation": "eq",
}
DRAWS = 4000


def debias(flip: Any, grader: Any = EXACT, **changes: Any) -> dict[str, Any]:
    return {"type": "debias", "name": "d", "grader": grader, "flip": flip, **changes}


@pytest.mark.parametrize(
    ("flip", "right", "wrong"),
    [
        (0.0, 1.0, 0.0),
        (0.2, 0.8 / 0.6, -0.2 / 0.6),
        ({"up": 0.1, "down": 0.4}, 0.9 / 0.5, -0.1 / 0.5),
        ({"down": 0.5}, 2.0, 0.0),
    ],
)
async def test_by_hand(flip: Any, right: float, wrong: float) -> None:
    outcomes = await build(debias(flip)).score([Sample(text, draw=SampleKey(0, 0)) for text in ("yes", "no")])
    assert [o.value for o in outcomes if isinstance(o, Score)] == pytest.approx([right, wrong])


async def test_between_other_values() -> None:
    """Of −1 and 3 flipped at 0.25: an observed 1 is at half of the range, and stays; 0 is at a quarter of it, and goes
    to low."""
    outcomes = await build(debias(0.25, low=-1, high=3)).score([Sample(t, draw=SampleKey(0, 0)) for t in ("yes", "no")])
    assert [o.value for o in outcomes if isinstance(o, Score)] == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("flip", [0.3, {"up": 0.05, "down": 0.4}])
async def test_the_mean_over_the_flips_is_the_reward_before_them(flip: Any) -> None:
    noise = {"type": "noisy", "name": "n", "grader": EXACT, "flip": flip, "per": "completion"}
    reward = build(debias(flip, noise))
    for text, clean in (("yes", 1.0), ("no", 0.0)):
        outcomes = await reward.score([Sample(text, draw=SampleKey(0, n)) for n in range(DRAWS)])
        values = [o.value for o in outcomes if isinstance(o, Score)]
        spread = (sum((v - clean) ** 2 for v in values) / DRAWS) ** 0.5
        assert abs(sum(values) / DRAWS - clean) < 4 * spread / DRAWS**0.5
        assert spread > 0.3, "single rewards are as noisy as before"
        assert all(o.components == {"clean": clean} for o in outcomes if isinstance(o, Score))


async def test_an_evaluation_is_left_alone() -> None:
    assert await build(debias(0.4)).score([Sample("yes"), Sample("no")]) == [Score(1.0), Score(0.0)]


async def test_a_value_beyond_every_score_is_a_failure(tmp_path: Any) -> None:
    (tmp_path / "huge.py").write_text("def grade(sample, item):\n    return 1e14\n")
    function = {"type": "function", "name": "huge", "function": f"{tmp_path}/huge.py:grade"}
    reward = build(debias(0.49, function))
    (outcome,) = await score_once(reward, [Sample("", draw=SampleKey(0, 0))])
    assert isinstance(outcome, Failure)
    assert (outcome.kind, "beyond" in outcome.message) == ("invalid_value", True)
    assert outcome.message.startswith("the changed score is 4999")


@pytest.mark.parametrize("flip", [0.5, 0.9, {"up": 0.5, "down": 0.5}, {"up": 1.0}])
def test_refused_where_nothing_is_left(flip: Any) -> None:
    with pytest.raises(InvalidRequest, match="nothing of the reward to recover"):
        validate(debias(flip))
