"""`noisy`: its rates, that one draw has one noise, and that nothing but training has any."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_lab.paths import ROOT
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import build, validate

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
GROUPS, COMPLETIONS = 2000, 4
ITEM = {"answer": "yes"}


def noisy(**changes: Any) -> dict[str, Any]:
    return {"type": "noisy", "name": "n", "grader": EXACT, **changes}


def group(number: int, texts: Sequence[str] = ("yes", "no", "yes", "no")) -> list[Sample]:
    return [Sample(text, ITEM, draw=SampleKey(number, n)) for n, text in enumerate(texts)]


async def scored(grader: dict[str, Any], groups: int = GROUPS) -> list[list[Outcome]]:
    reward = build(grader)
    await reward.start()
    outcomes = [await reward.score(group(number)) for number in range(groups)]
    await reward.close()
    return outcomes


def flips(outcomes: list[list[Outcome]]) -> list[list[bool]]:
    found = [[o for o in group if isinstance(o, Score)] for group in outcomes]
    return [[score.value != score.components["clean"] for score in group] for group in found]


def within(seen: float, rate: float, draws: int) -> bool:
    """Four standard errors."""
    return abs(seen - rate) <= 4 * (rate * (1 - rate) / draws) ** 0.5


async def test_a_question_is_flipped_as_a_whole() -> None:
    found = flips(await scored(noisy(flip=0.3)))
    assert all(len(set(group)) == 1 for group in found)
    assert within(sum(group[0] for group in found) / GROUPS, 0.3, GROUPS)


async def test_completions_are_flipped_each_for_itself() -> None:
    found = flips(await scored(noisy(flip=0.3, per="completion")))
    draws = GROUPS * COMPLETIONS
    assert within(sum(map(sum, found)) / draws, 0.3, draws)
    unflipped = sum(not any(group) for group in found) / GROUPS
    assert within(unflipped, 0.7**COMPLETIONS, GROUPS), "the flips of a group's completions are independent"


@pytest.mark.parametrize("per", ["question", "completion"])
async def test_rates_up_and_down(per: str) -> None:
    found = flips(await scored(noisy(flip={"up": 0.1, "down": 0.4}, per=per)))
    right = [f for group in found for f in group[0::2]]
    wrong = [f for group in found for f in group[1::2]]
    assert within(sum(right) / len(right), 0.4, GROUPS)
    assert within(sum(wrong) / len(wrong), 0.1, GROUPS)


async def test_flipped_values_are_the_mirror_between_low_and_high() -> None:
    ((right, wrong, *_),) = await scored(noisy(flip=1, low=-1, high=2), groups=1)
    assert right == Score(0.0, {"clean": 1.0})
    assert wrong == Score(1.0, {"clean": 0.0})


async def test_gaussian_noise_has_its_deviation_and_is_each_completions_own() -> None:
    outcomes = await scored(noisy(gaussian=0.5))
    added = [s.value - s.components["clean"] for group in outcomes for s in group if isinstance(s, Score)]
    mean = sum(added) / len(added)
    deviation = (sum((a - mean) ** 2 for a in added) / len(added)) ** 0.5
    assert abs(mean) < 4 * 0.5 / len(added) ** 0.5
    assert deviation == pytest.approx(0.5, rel=4 / (2 * len(added)) ** 0.5)
    assert len(set(added)) > 0.99 * len(added)


async def test_missing_scores_are_not_zero() -> None:
    outcomes = await scored(noisy(missing=0.2))
    draws = GROUPS * COMPLETIONS
    missing = sum(o == NotApplicable() for group in outcomes for o in group)
    assert within(missing / draws, 0.2, draws)
    assert {type(o) for group in outcomes for o in group} == {NotApplicable, Score}


async def test_one_noise_around_another_is_not_the_same_noise_and_shows_the_first_value() -> None:
    inner = noisy(flip=0.5, seed=1)
    outcomes = await scored(noisy(grader=inner, flip=0.5, seed=2))
    found = flips(outcomes)
    assert within(sum(group[0] for group in found) / GROUPS, 0.5, GROUPS)
    first = [o.components for o in outcomes[0] if isinstance(o, Score)]
    assert first == [{"clean": clean} for clean in (1.0, 0.0, 1.0, 0.0)]


async def test_noise_follows_from_seed_and_draw_alone() -> None:
    spec = noisy(flip=0.5, per="completion", gaussian=0.1, missing=0.1, seed=7)
    first, again, other = build(spec), build(spec), build({**spec, "seed": 8})
    groups = [group(number) for number in range(50)]
    forwards = [await first.score(g) for g in groups]
    backwards = [await again.score(g) for g in reversed(groups)][::-1]
    assert forwards == backwards
    one_by_one = [[outcome for s in g for outcome in await first.score([s])] for g in groups]
    assert forwards == one_by_one
    assert forwards != [await other.score(g) for g in groups]


def test_another_process_makes_the_same_noise() -> None:
    code = (
        "import asyncio, json, sys\n"
        "from headrace_rewards.protocol import SampleKey, Sample\n"
        "from headrace_rewards.registry import build\n"
        "samples = [Sample('yes', {'answer': 'yes'}, draw=SampleKey(g, 0)) for g in range(40)]\n"
        "outcomes = asyncio.run(build(json.loads(sys.argv[1])).score(samples))\n"
        "print(json.dumps([o.value for o in outcomes]))\n"
    )
    spec = noisy(flip=0.5, gaussian=0.1)
    command = [sys.executable, "-c", code, json.dumps(spec)]
    environment = {"PYTHONHASHSEED": "12345"}
    ended = subprocess.run(command, capture_output=True, check=True, timeout=60, cwd=ROOT, env=environment)
    here = asyncio.run(build(spec).score([Sample("yes", ITEM, draw=SampleKey(g, 0)) for g in range(40)]))
    assert json.loads(ended.stdout) == [o.value for o in here if isinstance(o, Score)]


rate = st.floats(0, 1)


@settings(deadline=None, derandomize=True)
@given(
    spec=st.fixed_dictionaries(
        {
            "flip": rate | st.fixed_dictionaries({"up": rate, "down": rate}),
            "per": st.sampled_from(["question", "completion"]),
            "gaussian": st.floats(0, 1e6),
            "delay": st.floats(0, 600) | st.fixed_dictionaries({"mean": st.floats(1, 60)}),
            "missing": rate,
            "seed": st.integers(0, 2**63 - 1),
        }
    ),
    texts=st.lists(st.sampled_from(["yes", "no"]), max_size=5),
)
def test_no_noise_without_a_draw(spec: dict[str, Any], texts: list[str]) -> None:
    samples = [Sample(text, ITEM) for text in texts]
    wrapped = [noisy(**spec), {"type": "debias", "name": "d", "grader": noisy(**spec), "flip": 0.1}]
    wrapped.append({"type": "calibrated", "name": "c", "grader": noisy(**spec), "alpha": 1})
    expected = [Score(float(text == "yes")) for text in texts]
    assert all(asyncio.run(build(grader).score(samples)) == expected for grader in wrapped)


async def test_a_failure_stays_one() -> None:
    reward = build(noisy(flip=1, missing=1))
    right, unanswerable = await reward.score(
        [Sample("yes", ITEM, draw=SampleKey(0, 0)), Sample("yes", draw=SampleKey(0, 1))]
    )
    assert right == NotApplicable()
    assert isinstance(unanswerable, Failure)


async def test_the_delays_of_a_group_pass_at_once() -> None:
    reward = build(noisy(delay=0.2))
    clock = asyncio.get_running_loop().time
    began = clock()
    await reward.score(group(0))
    assert 0.2 <= clock() - began < 0.8, "four completions, one delay"
    began = clock()
    await reward.score([Sample("yes", ITEM)])
    assert clock() - began < 0.2, "an evaluation does not wait"


async def test_exponential_delays_have_their_mean() -> None:
    reward: Any = build(noisy(delay={"mean": 2.0}))
    delays = [reward._delay(SampleKey(number, 0)) for number in range(GROUPS)]
    assert sum(delays) / GROUPS == pytest.approx(2.0, rel=4 / GROUPS**0.5)
    assert within(sum(d > 2.0 for d in delays) / GROUPS, 0.3679, GROUPS)


async def test_closing_ends_a_delay() -> None:
    reward = build(noisy(delay=600))
    scoring = asyncio.create_task(reward.score(group(0)))
    await asyncio.sleep(0)
    await reward.close()
    async with asyncio.timeout(5):
        outcomes = await scoring
    assert [o.kind for o in outcomes if isinstance(o, Failure)] == ["unavailable"] * COMPLETIONS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.1}, "grader.flip"),
        ({"flip": {"up": 0.1, "left": 0.1}}, "grader.flip"),
        ({"low": 1, "high": 1}, "low 1 must be below high 1"),
        ({"per": "batch"}, "grader.per"),
        ({"grader": {**EXACT, "operation": "equals"}}, "grader.operation"),
        ({"seed": -1}, "grader.seed"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        validate(noisy(**changes))


def test_the_description_survives_a_round_trip() -> None:
    spec = validate(noisy(flip={"up": 0.1, "down": 0.2}, delay={"mean": 1}))
    assert validate(json.loads(spec.model_dump_json())) == spec


async def test_noise_that_leads_beyond_every_score_is_a_failure() -> None:
    """Added to the largest score there may be, noise that raises it leaves the range."""
    large = {"type": "multi", "name": "m", "graders": {"a": EXACT}, "calculate_output": "a * 1e15"}
    outcomes = [o for group in await scored(noisy(grader=large, gaussian=1e6)) for o in group]
    beyond = [o for o in outcomes if isinstance(o, Failure)]
    assert {o.kind for o in beyond} == {"invalid_value"}
    assert all("the changed score is" in o.message and "beyond ±1e+15" in o.message for o in beyond)
    assert within(len(beyond) / len(outcomes), 0.25, len(outcomes))
