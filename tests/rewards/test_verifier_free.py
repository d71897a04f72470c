"""Rewards without a verifier, against figures computed by hand; what they ask for, in training and in an evaluation."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_core.types.likelihood import Likelihood
from headrace_rewards.graders.verifier_free.base import asked
from headrace_rewards.graders.verifier_free.majority_vote import answer_in
from headrace_rewards.protocol import PolicyMeasurements, Sample, SampleKey
from headrace_rewards.registry import build, validate

HALF, QUARTER, TENTH = math.log(0.5), math.log(0.25), math.log(0.1)
RIGHT = {
    "type": "string_check",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}


def grader(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "name": kind, **fields}


def of(measured: PolicyMeasurements | None, completion: int = 0, text: str = "", group: int = 0) -> Sample:
    return Sample(text, draw=SampleKey(group, completion), measured=measured)


def answered(*reference: float, alone: tuple[float, ...] | None = None) -> PolicyMeasurements:
    return PolicyMeasurements(logprobs=(-1.0,), reference=reference, reference_alone=alone)


async def score(described: dict[str, Any], *samples: Sample) -> list[Outcome]:
    return await build(described).score(samples)


def values(outcomes: list[Outcome]) -> list[float]:
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return [outcome.value for outcome in outcomes if isinstance(outcome, Score)]


@pytest.mark.parametrize(
    ("kind", "opened", "unopened"),
    [("verifree", 0.125, 0.0), ("jepo", math.log(0.125), -20.0), ("latro", math.log(0.125), -20.0)],
)
async def test_the_likelihood_of_the_reference_answer(kind: str, opened: float, unopened: float) -> None:
    outcomes = await score(grader(kind), of(answered(HALF, QUARTER)), of(answered()))
    assert values(outcomes) == pytest.approx([opened, unopened])
    assert [o.components for o in outcomes if isinstance(o, Score)] == [{"answer_opened": 1.0}, {"answer_opened": 0.0}]


async def test_a_log_likelihood_has_a_floor() -> None:
    far, farther = answered(-3.0, -4.0), answered(-800.0)
    assert values(await score(grader("jepo", floor=-7.5), of(far), of(farther), of(answered()))) == [-7.0, -7.5, -7.5]
    assert values(await score(grader("verifree"), of(farther))) == [0.0]
    with pytest.raises(InvalidRequest, match=r"grader\.floor"):
        validate(grader("jepo", floor=0.0))


async def likelihood(described: dict[str, Any], measured: PolicyMeasurements, text: str = "") -> Likelihood | None:
    """What the outcome says of how its value follows from the reference answer's log-probabilities."""
    (outcome,) = await score(described, of(measured, text=text))
    assert isinstance(outcome, Score)
    return outcome.likelihood


async def test_the_weight_of_the_reference_answers_tokens() -> None:
    async def weight(kind: str) -> float:
        found = await likelihood(grader(kind), answered(HALF, TENTH, alone=(TENTH, TENTH)))
        assert found is not None
        return found.answer_weight([HALF, TENTH])

    assert [await weight(kind) for kind in ("jepo", "latro", "rlpr")] == [1.0, 1.0, 0.0]
    assert await weight("verifree") == pytest.approx(0.05)


HELD = {"likelihood": grader("verifree"), "right": RIGHT}
NOISE = {"type": "noisy", "name": "n", "grader": grader("verifree"), "flip": 0.5, "per": "completion", "gaussian": 0.3}
CHANGED: dict[str, dict[str, Any]] = {
    **{kind: grader(kind) for kind in ("verifree", "jepo", "latro", "rlpr")},
    "clipped": grader("rlpr", spread_share=0),
    "floor": grader("jepo", floor=-3.0),
    "share": grader("multi", graders=HELD, calculate_output="0.7 * likelihood + 0.3 * right"),
    "product": grader("multi", graders=HELD, calculate_output="likelihood * (1 - right / 4) / 2 - 1"),
    "noisy": NOISE,
    "debias": {"type": "debias", "name": "d", "grader": NOISE, "flip": 0.1},
    "audited": {"type": "audited", "name": "a", "grader": grader("verifree"), "audit": RIGHT, "share": 1.0},
    "nested": grader("multi", graders={"inner": {**NOISE, "name": "inner"}}, calculate_output="-2 * inner"),
}


@pytest.mark.parametrize("name", CHANGED)
async def test_what_an_outcome_says_of_its_likelihood_leads_from_one_policys_reward_to_anothers(name: str) -> None:
    """The same completions of two policies, scored twice; the second scores follow from the first outcomes."""
    alone = (QUARTER,) * 2
    pairs = [(HALF, QUARTER), (TENTH, TENTH), (-0.1, -0.2), (QUARTER, -0.05)]
    older = [of(answered(*pair, alone=alone), number, "42") for number, pair in enumerate(pairs)]
    newer = [of(answered(*pair, alone=alone), number, "42") for number, pair in enumerate(reversed(pairs))]
    for sample in (*older, *newer):
        sample.item["answer"] = "42"
    first, second = [await score(CHANGED[name], *samples) for samples in (older, newer)]
    changed = 0
    for a, b, before, after in zip(pairs, reversed(pairs), first, second, strict=True):
        assert isinstance(before, Score)
        assert isinstance(after, Score)
        how = before.likelihood
        assert how is not None
        assert how.affine
        assert after.value == pytest.approx(before.value + how.coefficient * (how.value(b) - how.value(a)))
        changed += after.value != before.value
    assert changed > 1


@pytest.mark.parametrize(
    ("formula", "coefficient"),
    [("likelihood ^ 2", 0.4), ("min(likelihood, 0.1)", 0.0), ("max(likelihood, right)", 0.0)],
)
async def test_a_formula_that_bends_the_likelihood_says_so(formula: str, coefficient: float) -> None:
    described = grader("multi", graders=HELD, calculate_output=formula)
    sample = of(answered(HALF, math.log(0.4)), text="42")
    sample.item["answer"] = "42"
    (outcome,) = await score(described, sample)
    assert isinstance(outcome, Score)
    assert outcome.likelihood is not None
    assert (outcome.likelihood.coefficient, outcome.likelihood.affine) == (pytest.approx(coefficient), False)


async def test_a_reward_that_no_likelihood_enters_says_nothing_of_one() -> None:
    audit = {"type": "audited", "name": "a", "grader": RIGHT, "audit": grader("verifree"), "share": 1.0}
    sample = of(answered(HALF), text="42")
    sample.item["answer"] = "42"
    assert [o.likelihood for o in await score(audit, sample) if isinstance(o, Score)] == [None]
    assert await likelihood(grader("verifree"), answered()) is None, "no answer was opened: 0, whatever the policy"
    unused = grader("multi", graders=HELD, calculate_output="right")
    (outcome,) = await score(unused, sample)
    assert isinstance(outcome, Score)
    assert outcome.likelihood is not None
    assert outcome.likelihood.coefficient == 0


async def test_a_calibrated_likelihood_has_a_step() -> None:
    found = await likelihood({"type": "calibrated", "name": "c", "grader": grader("verifree")}, answered(HALF))
    assert found is not None
    assert (found.coefficient, found.affine) == (1.0, False)


async def test_rlpr_is_what_the_reasoning_adds_to_the_mean_probability() -> None:
    alone = (HALF, TENTH)  # mean 0.3
    outcomes = await score(
        grader("rlpr"),
        of(answered(HALF, HALF, alone=alone)),  # 0.5 − 0.3
        of(answered(TENTH, TENTH, alone=alone)),  # 0.1 − 0.3: clipped
        of(answered(alone=alone)),  # nothing opened
    )
    assert values(outcomes) == pytest.approx([0.2, 0.0, 0.0])
    assert isinstance(outcomes[0], Score)
    assert outcomes[0].components == pytest.approx({"reasoned": 0.5, "alone": 0.3, "answer_opened": 1.0})


async def test_rlpr_leaves_out_groups_whose_spread_is_under_half_its_moving_average() -> None:
    reward = build(grader("rlpr"))

    def group(low: float, high: float, evaluating: bool = False) -> list[Sample]:
        samples = [of(answered(math.log(p), alone=(math.log(1e-9),))) for p in (low, high)]
        return [Sample("", measured=s.measured) for s in samples] if evaluating else samples

    async def kept(samples: list[Sample]) -> bool:
        outcomes = await reward.score(samples)
        assert len({type(outcome) for outcome in outcomes}) == 1
        return isinstance(outcomes[0], Score)

    assert await kept(group(0.2, 0.6))  # the first: spread 0.2, and so the average
    assert not await kept(group(0.5, 0.69))  # 0.095 < 0.1; the average falls to 0.19895
    assert await kept(group(0.5, 0.699))  # 0.0995 ≥ 0.099475; it would not have been, had the average stayed at 0.2
    assert not await kept(group(0.5, 0.5))
    assert await kept(group(0.5, 0.5, evaluating=True))
    assert isinstance((await build(grader("rlpr", spread_share=0)).score(group(0.5, 0.5)))[0], Score)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer> 4  2 </answer>", "4 2"),
        ("<answer>1</answer> no, <answer>2\n</answer>.", "2"),
        ("we add\n\n the sum is 42 \n", "the sum is 42"),
        ("<answer> </answer>", None),
        ("  \n", None),
        ("<answer> 3", "<answer> 3"),
    ],
)
def test_the_answer_in_a_text(text: str, answer: str | None) -> None:
    assert answer_in(text, "answer") == answer


async def test_the_greedy_completion_is_judged_by_the_vote_and_has_none() -> None:
    """Of an algorithm that wants one: here it would break the tie, and be right by its own vote."""
    sampled = [of(None, i, text) for i, text in enumerate(["7", "8"])]
    greedy = Sample("8", draw=SampleKey(0, 2, greedy=True))
    outcomes = await score(grader("majority_vote"), *sampled, greedy)
    assert outcomes == [Score(right, {"agreement": 0.5}) for right in (1.0, 0.0, 0.0)]
    silent = [of(None, i, "") for i in range(2)]
    assert await score(grader("majority_vote"), *silent, greedy) == [Score(0.0)] * 3


async def test_rlprs_spread_is_that_of_the_sampled_completions() -> None:
    def measured(p: float) -> PolicyMeasurements:
        return answered(math.log(p), alone=(math.log(0.001),))

    def group(number: int, *ps: float, greedy: float) -> list[Sample]:
        baseline = Sample("", draw=SampleKey(number, len(ps), greedy=True), measured=measured(greedy))
        return [*(of(measured(p), i, group=number) for i, p in enumerate(ps)), baseline]

    reward = build(grader("rlpr"))
    assert all(isinstance(o, Score) for o in await reward.score(group(0, 0.2, 0.8, greedy=0.5)))
    alike = await reward.score(group(1, 0.5, 0.5, greedy=0.001))
    assert alike == [NotApplicable()] * 3, "though the greedy one differs"
    (first, *_) = await reward.score(group(2, 0.35, 0.65, greedy=0.5))
    assert isinstance(first, Score), "a spread of half the average"


async def test_the_majority_of_a_group_is_right_and_ties_go_to_the_first_seen() -> None:
    texts = ["7", "<answer> 8 </answer>", "8", "7", "", "9"]
    samples = [of(None, number, text) for number, text in enumerate(texts)]
    assert values(await score(grader("majority_vote"), *samples)) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    two_groups = [of(None, 0, "1"), of(None, 0, "2", 1), of(None, 1, "2", 1), of(None, 2, "1", 1)]
    outcomes = await score(grader("majority_vote"), *two_groups)
    assert values(outcomes) == [1.0, 1.0, 1.0, 0.0]
    assert outcomes[3] == Score(0.0, {"agreement": 2 / 3})
    assert await score(grader("majority_vote"), of(None, 0, ""), Sample("7")) == [Score(0.0), NotApplicable()]
    tagged = [of(None, n, f"<final>{n // 2}</final> {n}") for n in range(3)]
    assert values(await score(grader("majority_vote", tag="final"), *tagged)) == [1.0, 1.0, 0.0]


async def test_certainty_and_entropy_are_means_over_the_tokens() -> None:
    measured = PolicyMeasurements((-1.0, -1.0), entropies=(0.5, 1.5), certainties=(3.0, 5.0))
    assert values(await score(grader("self_certainty"), of(measured))) == [4.0]
    assert values(await score(grader("entropy"), of(measured))) == [-1.0]


@pytest.mark.parametrize("kind", ["verifree", "jepo", "latro", "rlpr", "self_certainty", "entropy"])
async def test_what_was_not_measured_is_a_failure_and_an_evaluation_may_have_a_grader_of_its_own(kind: str) -> None:
    for sample in (Sample("42", {"answer": "42"}), of(PolicyMeasurements((-1.0,)))):
        (outcome,) = await score(grader(kind), sample)
        assert isinstance(outcome, Failure)
        assert "name another one as its 'evaluation'" in outcome.message
    reward = build(grader(kind, evaluation=RIGHT))
    await reward.start()
    assert values(await reward.score([Sample("42", {"answer": "42"}), Sample("41", {"answer": "42"})])) == [1.0, 0.0]
    (outcome,) = await reward.score([of(None)])
    assert isinstance(outcome, Failure)
    await reward.close()


def test_who_is_asked_in_training_and_in_an_evaluation() -> None:
    both = {
        "type": "multi",
        "name": "both",
        "graders": {
            "a": grader("noisy", grader=grader("verifree", evaluation=RIGHT), flip=0.1),
            "b": grader("self_certainty"),
        },
        "calculate_output": "a + b",
    }
    spec = validate(both)
    assert [each.type for each in asked(spec, evaluating=False)] == ["multi", "noisy", "verifree", "self_certainty"]
    assert [each.type for each in asked(spec, evaluating=True)] == ["multi", "noisy", "string_check", "self_certainty"]
    assert spec.needs() == {"reference", "distribution"}
    assert validate(spec.model_dump()) == spec
