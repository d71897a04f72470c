"""What the reward does to groups: counted, told, scored again beside the work; a failure is never a score."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from headrace_core.concurrency import cancel
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_core.types.metrics import Tally
from headrace_core.types.reward_statistics import mean, share
from headrace_rewards.protocol import PolicyMeasurements, Sample, SampleKey, score_wanted
from headrace_rewards.registry import build, validate
from headrace_rollout.monitored_reward import DRIFT_PANEL_SIZE, MAX_REPORTED_FAILURES, MAX_WAITING, MonitoredReward
from headrace_rollout.reward_scoring import RewardFailed, value_of

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "yes",
    "operation": "eq",
}
GROUP = ("yes", "no", "no", "yes")


class Written:
    """A reward whose outcomes stand in the text: a number, `none`, or the kind of a failure; the second scoring of all
    comes after the first, `moved` further up. Failures named `late` are mended when they are tried again."""

    def __init__(self, moved: float = 0.0) -> None:
        self.moved = moved
        self.calls: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self._seen: set[SampleKey | None] = set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return await score_wanted(samples, self._score)

    async def _score(self, samples: Sequence[Sample]) -> list[Outcome]:
        self.calls.append(len(samples))
        await self.open.wait()
        return [self._outcome(sample) for sample in samples]

    def _outcome(self, sample: Sample) -> Outcome:
        again, text = sample.draw in self._seen, sample.output_text
        self._seen.add(sample.draw)
        if text == "none":
            return NotApplicable()
        if text == "late":
            return Score(1.0) if again else Failure("timeout", "too slow")
        if text == "once" and again:
            return Failure("timeout", "too slow")
        if text in ("exception", "crashed", "bad_output"):
            return Failure(text, f"it was {text}", "Traceback …")  # type: ignore[arg-type]
        return Score((1.0 if text == "once" else float(text)) + self.moved * again)


def watched(reward: Any = None, grader: Any = EXACT, **settings: Any) -> MonitoredReward:
    spec = validate(grader)
    plain = {"group_size": 4, "reward_recheck": 0.0}
    return MonitoredReward(reward or build(grader), spec, "rollout-0", Hyperparameters.model_validate(plain | settings))


def group(number: int, *texts: str) -> list[Sample]:
    return [Sample(text, draw=SampleKey(number, i)) for i, text in enumerate(texts)]


async def until_counted(reward: MonitoredReward, condition: Any) -> Any:
    """Run the watch until its figures satisfy `condition`; the last figures."""
    run, figures = asyncio.create_task(reward.run()), None
    try:
        async with asyncio.timeout(10):
            while figures is None or not condition(figures):
                await asyncio.sleep(0)
                figures = reward.take() or figures
    finally:
        await cancel([run])
    return figures


async def test_what_was_scored_is_counted_once() -> None:
    reward = watched(Written())
    assert reward.take() is None
    await reward.score(group(0, "1", "none", "0", "late"))
    first = reward.take()
    assert first is not None
    assert (first.groups, first.completions, first.not_applicable, first.failures) == (1, 4, 1, {})
    assert reward.take() is None
    await reward.score(group(1, "1", "1", "1", "1"))
    second = reward.take()
    assert second is not None
    assert (second.groups, second.completions, second.started) == (2, 8, first.started)


async def test_a_greedy_completion_counts_in_no_statistic_of_the_sampled_ones() -> None:
    remax = {"algorithm": "remax", "group_size": 2, "reward_failure": "leave_out"}
    reward = watched(Written(), **remax, reward_recheck=1.0)

    def with_greedy(number: int, *texts: str) -> list[Sample]:
        *sampled, last = group(number, *texts)
        return [*sampled, replace(last, draw=SampleKey(number, len(sampled), greedy=True))]

    await reward.score(with_greedy(0, "1", "late", "0"))
    with pytest.raises(RewardFailed):
        await reward.score(with_greedy(1, "1", "1", "crashed"))
    figures = await until_counted(reward, lambda f: f.again.equal.groups)
    assert (figures.groups, figures.completions, figures.failures) == (2, 4, {"crashed": 1})
    assert (figures.again.equal.groups, figures.again.equal.count) == (1, 2)

    noisy = watched(None, {"type": "noisy", "name": "noisy", "grader": EXACT, "flip": 0.0}, **remax)
    await noisy.score(with_greedy(0, "yes", "no", "yes"))
    flips = noisy.take().truth["clean"]  # type: ignore[union-attr]
    assert (flips.up.count, flips.down.count) == (1, 1)


async def test_failures_end_the_group_and_are_counted_by_kind() -> None:
    reward = watched(Written())
    with pytest.raises(RewardFailed, match=r"^exception 2, crashed 1 of 4 completions; exception: it was exception$"):
        await reward.score(group(0, "exception", "1", "exception", "crashed"))
    figures = reward.take()
    assert figures is not None
    assert figures.failures == {"exception": 2, "crashed": 1} == reward.failures
    assert figures.left_out == 0
    told = reward.take_failures()
    assert {(number, failure.kind) for number, failure in told} == {(0, "exception"), (0, "crashed")}
    assert len(told) == 2, "one of a kind in a group"
    assert told[0][1].traceback == "Traceback …"
    assert reward.take_failures() == []


async def test_only_the_first_failures_are_told() -> None:
    reward = watched(Written())
    for number in range(8):
        with pytest.raises(RewardFailed):
            await reward.score(group(number, "exception", "1", "exception", "0"))
    assert [number for number, _ in reward.take_failures()] == list(range(MAX_REPORTED_FAILURES))
    assert reward.failures == {"exception": 16}


async def test_a_group_goes_on_without_those_that_failed() -> None:
    written = Written()
    reward = watched(written, reward_failure="leave_out", reward_attempts=3)
    outcomes = await reward.score(group(0, "1", "exception", "0", "crashed"))
    assert [value_of(o)[0] for o in outcomes] == [1.0, None, 0.0, None]
    assert written.calls == [4, 2, 2], "only those that failed are tried again"
    figures = reward.take()
    assert figures is not None
    assert (figures.left_out, figures.failures) == (2, {"exception": 1, "crashed": 1})


@pytest.mark.parametrize(
    ("algorithm", "texts", "goes_on"),
    [
        ("grpo", ("1", "exception", "exception", "exception"), False),  # nothing to compare it with
        ("grpo", ("1", "none", "none", "exception"), False),
        ("reinforce_pp", ("1", "exception", "exception", "exception"), True),
        ("reinforce_pp", ("exception",) * 4, False),
        ("remax", ("1", "exception", "1", "1", "0"), True),
        ("remax", ("1", "1", "1", "1", "exception"), False),  # its baseline is missing
        ("grpo", ("none",) * 4, True),  # no opinion is no failure
    ],
)
async def test_what_must_be_left_of_a_group(algorithm: str, texts: tuple[str, ...], goes_on: bool) -> None:
    reward = watched(Written(), reward_failure="leave_out", algorithm=algorithm, batch_size=2, minibatches=1)
    if goes_on:
        assert len(await reward.score(group(0, *texts))) == len(texts)
    else:
        with pytest.raises(RewardFailed):
            await reward.score(group(0, *texts))
        figures = reward.take()
        assert figures is not None
        assert figures.left_out == 0


async def test_a_reward_that_repeats_itself_does() -> None:
    reward = watched(reward_recheck=1.0)
    for number in range(3):
        await reward.score(group(number, *GROUP))
    figures = await until_counted(reward, lambda f: f.again.equal.count == 12)
    assert figures.again.equal == Tally(3, 12, 12.0, 48.0, 48.0, 48)
    assert figures.again.difference.total == 0.0


async def test_scored_again_apart_from_the_first_time() -> None:
    reward = watched(Written(moved=0.5), reward_recheck=1.0)
    assert [value_of(o)[0] for o in await reward.score(group(0, "1", "0", "once", "none"))] == [1.0, 0.0, 1.0, None]
    figures = await until_counted(reward, lambda f: f.again.equal.groups == 1)
    assert (figures.again.equal.total, figures.again.difference.total, figures.again.shift.total) == (0, 1.0, 1.0)
    assert figures.again.equal.count == 2, "of those that have two scores"
    assert figures.again_failures == {"timeout": 1}
    assert figures.failures == {}


async def test_scored_again_a_group_moves_no_statistic_of_its_grader() -> None:
    """`rlpr` leaves out groups by an average of those before, and the panel is scored over and over."""

    def measured(number: int, *ps: float) -> list[Sample]:
        alone = (math.log(1e-9),)
        found = [PolicyMeasurements((-1.0,), (math.log(p),), alone) for p in ps]
        return [Sample("", draw=SampleKey(number, i), measured=m) for i, m in enumerate(found)]

    reward = watched(grader={"type": "rlpr", "name": "r"}, reward_recheck=1.0)
    run = asyncio.create_task(reward.run())
    for number, ps in enumerate([(0.1, 0.9), *[(0.5, 0.5)] * 20]):  # average spread 0.4 × 0.99 ** 20
        await reward.score(measured(number, *ps))
        await asyncio.sleep(0)
    figures = None
    async with asyncio.timeout(10):
        while figures is None or not figures.drift_rounds:
            await asyncio.sleep(0)
            figures = reward.take() or figures
    await cancel([run])
    left_out = await reward.score(measured(99, 0.5 - 0.163, 0.5 + 0.163))
    assert left_out == [NotApplicable()] * 2  # 0.163 < 0.5 × 0.3272
    assert all(isinstance(o, Score) for o in await reward.score(measured(100, 0.5 - 0.163, 0.5 + 0.163)))  # × 0.3255


async def test_a_share_of_the_groups_is_scored_again_and_none_by_default_of_zero() -> None:
    written = Written()
    reward = watched(written, reward_recheck=0.1, seed=3)
    run = asyncio.create_task(reward.run())
    for number in range(300):
        await reward.score(group(number, "1", "0"))
        await asyncio.sleep(0)
    await cancel([run])
    figures = reward.take()
    assert figures is not None
    panels = figures.drift_rounds * DRIFT_PANEL_SIZE
    assert len(written.calls) - 300 - panels in range(15, 50)
    quiet = watched(written, reward_recheck=0.0)
    before = len(written.calls)
    for number in range(50):
        await quiet.score(group(number, "1", "0"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(quiet.run(), 0.05)
    assert len(written.calls) == before + 50


async def test_a_slow_reward_delays_no_group_by_being_scored_again() -> None:
    written = Written()
    reward = watched(written, reward_recheck=1.0)
    run = asyncio.create_task(reward.run())
    for number in range(2 * MAX_WAITING):  # nobody scores again meanwhile: the queue fills, and no group waits
        await reward.score(group(number, "1", "0"))
    written.open.clear()
    figures = reward.take()
    assert figures is not None
    assert figures.groups == 2 * MAX_WAITING
    assert figures.again_skipped == 2 * MAX_WAITING - MAX_WAITING
    await cancel([run])


@pytest.mark.parametrize("size", [2, 32])
async def test_the_panel_shows_a_reward_that_moves(size: int) -> None:
    """It is counted in groups: with many completions of a prompt, too, one worker has enough of them."""
    for moved in (0.0, 0.25):
        written = Written()
        reward = watched(written, reward_recheck=1.0, group_size=size)
        for number in range(DRIFT_PANEL_SIZE):
            await reward.score(group(number, *("1", "0") * (size // 2)))
        written.moved = moved
        figures = await until_counted(reward, lambda f: f.drift_rounds == 1)
        assert figures.drift.shift.groups == DRIFT_PANEL_SIZE
        assert figures.drift.shift.count == DRIFT_PANEL_SIZE * size
        found = mean(figures.drift.shift)
        assert found is not None
        assert found.low == pytest.approx(moved) == found.high


async def test_the_panel_has_only_groups_with_a_score_and_costs_no_more_than_the_share() -> None:
    written = Written()
    reward = watched(written, reward_recheck=0.1)
    run = asyncio.create_task(reward.run())
    numbers = itertools.count()
    for _ in range(DRIFT_PANEL_SIZE):
        await reward.score(group(next(numbers), "none", "none"))
    for _ in range(200 * DRIFT_PANEL_SIZE):
        await reward.score(group(next(numbers), "1", "0"))
        await asyncio.sleep(0)
    await cancel([run])
    figures = reward.take()
    assert figures is not None
    assert figures.drift.shift.groups == DRIFT_PANEL_SIZE, "the first ones had nothing to compare"
    assert 10 <= figures.drift_rounds <= 20, "a round of 8 groups for 80 of them at most"


async def test_flip_rates_of_a_noisy_reward_are_found() -> None:
    """Injected per completion: up 0.1, down 0.3; the intervals hold them, and they do not overlap."""
    noise = {"type": "noisy", "name": "n", "grader": EXACT, "flip": {"up": 0.1, "down": 0.3}, "per": "completion"}
    reward = watched(grader=noise)
    for number in range(300):
        await reward.score(group(number, *GROUP))
    figures = reward.take()
    assert figures is not None
    flips = figures.truth["clean"]
    up, down, disagree = share(flips.up), share(flips.down), share(flips.disagree)
    assert up is not None
    assert down is not None
    assert disagree is not None
    assert up.low <= 0.1 <= up.high < down.low <= 0.3 <= down.high
    assert disagree.low <= 0.2 <= disagree.high
    assert up.count + down.count == disagree.count == 1200


async def test_an_audit_is_the_truth_where_there_is_one() -> None:
    contains = EXACT | {"reference": "e", "operation": "like"}
    reward = watched(grader={"type": "audited", "name": "a", "grader": contains, "audit": EXACT, "share": 0.5})
    for number in range(40):
        await reward.score(group(number, "yes", "maybe", "no", "yet"))
    figures = reward.take()
    assert figures is not None
    flips = figures.truth["audit"]
    assert 5 < flips.up.groups < 35
    assert flips.up.total == 2 * flips.up.groups, "two of three wrong answers hold an e"
    assert flips.down.total == 0
    assert figures.audit_failed == 0


async def test_parts_of_a_multi_grader_are_held_against_what_they_know_of_themselves() -> None:
    """The formula's value says nothing of either: it is high for every completion."""
    noisy = {"type": "noisy", "name": "n", "grader": EXACT, "flip": 1.0}
    audit = {
        "type": "audited",
        "name": "a",
        "grader": EXACT,
        "audit": EXACT | {"input": "{{ item.lacking }}"},
        "share": 1,
    }
    parts = {"n": noisy, "a": audit}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "n + a + 5"}
    reward = watched(grader={"type": "noisy", "name": "o", "grader": multi, "missing": 0.0})
    for number in range(5):
        await reward.score(group(number, "yes", "no", "no", "no"))
    figures = reward.take()
    assert figures is not None
    flips = figures.truth["n.clean"]
    assert (flips.up.total, flips.up.count, flips.down.total, flips.down.count) == (15, 15, 5, 5)
    assert figures.audit_failed == 20
    assert figures.between["n / a"].total == figures.between["n / a"].count == 20


async def test_graders_that_are_asked_together_may_disagree() -> None:
    contains = EXACT | {"name": "contains", "reference": "e", "operation": "like"}
    reward = watched(grader={"type": "multi", "name": "m", "graders": [EXACT, contains], "calculate_output": "exact"})
    for number in range(5):
        await reward.score(group(number, "yes", "maybe", "no", "yet"))
    figures = reward.take()
    assert figures is not None
    (pair,) = figures.between
    assert pair == "exact / contains"
    assert (figures.between[pair].total, figures.between[pair].count) == (10, 20)


async def test_completions_without_the_json_are_counted_and_no_failures() -> None:
    reads = EXACT | {"input": "{{ sample.output_json.x }}"}
    reward = watched(reads_json := build(reads), reads)
    outcomes = await reward.score(group(0, '{"x": "yes"}', "yes", "{}", '{"x": "no"}'))
    await reads_json.close()
    assert [value_of(outcome)[0] for outcome in outcomes] == [1.0, 0.0, 0.0, 0.0]
    figures = reward.take()
    assert figures is not None
    assert (figures.sample_parse_errors, figures.failures, figures.completions) == (2, {}, 4)
