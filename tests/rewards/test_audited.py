"""`audited`: the reward is the grader's, whatever the audit does; chosen by group, never outside training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards.graders.spec import Truth
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import build, validate


def contains(word: str) -> dict[str, Any]:
    text = "{{ sample.output_text }}"
    return {"type": "string_check", "name": word, "input": text, "reference": word, "operation": "like"}


def audited(grader: Any = None, audit: Any = None, **changes: Any) -> dict[str, Any]:
    held = {"grader": grader or contains("a"), "audit": audit or contains("b")}
    return {"type": "audited", "name": "checked", **held, **changes}


def group(number: int, *texts: str) -> list[Sample]:
    return [Sample(text, draw=SampleKey(number, i)) for i, text in enumerate(texts)]


async def test_the_audit_stands_beside_the_reward() -> None:
    outcomes = await build(audited(share=1)).score(group(0, "a", "b", "ab", ""))
    assert outcomes == [
        Score(1.0, {"audit": 0.0, "audit_failed": 0.0}),
        Score(0.0, {"audit": 1.0, "audit_failed": 0.0}),
        Score(1.0, {"audit": 1.0, "audit_failed": 0.0}),
        Score(0.0, {"audit": 0.0, "audit_failed": 0.0}),
    ]


async def test_a_share_of_the_groups_is_chosen_whole_and_alike_every_time() -> None:
    reward, again = build(audited(share=0.2)), build(audited(share=0.2))
    chosen = [["audit" in o.components for o in scores(await reward.score(group(n, "a", "b")))] for n in range(1000)]
    assert chosen == [
        ["audit" in o.components for o in scores(await again.score(group(n, "a", "b")))] for n in range(1000)
    ]
    assert {tuple(g) for g in chosen} == {(True, True), (False, False)}
    assert 150 < sum(g[0] for g in chosen) < 250
    other = build(audited(share=0.2, seed=1))
    assert chosen != [
        ["audit" in o.components for o in scores(await other.score(group(n, "a", "b")))] for n in range(1000)
    ]


def scores(outcomes: list[Outcome]) -> list[Score]:
    assert all(isinstance(o, Score) for o in outcomes)
    return [o for o in outcomes if isinstance(o, Score)]


async def test_nothing_is_audited_outside_training() -> None:
    assert await build(audited(share=1)).score([Sample("a")]) == [Score(1.0)]
    assert await build(audited(share=1)).score([]) == []


@pytest.fixture
def functions(tmp_path: Path) -> dict[str, dict[str, Any]]:
    (tmp_path / "f.py").write_text(
        "def fails(completion):\n    raise LookupError('no audit today')\n"
        "def silent(completion):\n    return None\n"
        "def one(completion):\n    return {'score': 1.0, 'part': 0.5}\n"
    )
    names = ("fails", "silent", "one")
    return {n: {"type": "function", "name": n, "function": f"{tmp_path / 'f.py'}:{n}"} for n in names}


async def test_an_audit_that_fails_is_counted_and_changes_nothing(functions: dict[str, Any]) -> None:
    for audit, failed in (("fails", 1.0), ("silent", 0.0)):
        reward = build(audited(functions["one"], functions[audit], share=1))
        outcomes = await score_once(reward, group(0, "x", "y"))
        assert outcomes == [Score(1.0, {"score": 1.0, "part": 0.5, "audit_failed": failed})] * 2, audit


async def test_what_has_no_score_stays_as_it_is(functions: dict[str, Any]) -> None:
    reward = build(audited(functions["fails"], share=1))
    (outcome,) = await score_once(reward, group(0, "b"))
    assert isinstance(outcome, Failure)
    assert outcome.kind == "exception"
    silent = build(audited(functions["silent"], share=1))
    await silent.start()
    assert await silent.score(group(0, "b")) == [NotApplicable()]
    await silent.close()


async def test_where_the_audit_cannot_start_neither_is_left(tmp_path: Path, functions: dict[str, Any]) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('cannot be imported')\n")
    broken = {"type": "function", "name": "broken", "function": f"{tmp_path / 'broken.py'}:f"}
    reward = build(audited(functions["one"], broken))
    with pytest.raises(InvalidRequest, match="cannot be imported"):
        await reward.start()
    outcomes = await reward.score([Sample("x")])
    assert isinstance(outcomes[0], Failure)
    assert outcomes[0].kind == "unavailable", "the grader was closed again"


def test_what_counts_as_high_and_as_the_truth() -> None:
    noisy = {"type": "noisy", "name": "n", "grader": contains("a"), "flip": 0.2, "low": -1, "high": 3}
    assert validate(contains("a")).truths() == {}
    assert validate(noisy).truths() == {"clean": Truth(1.0)}
    assert validate({"type": "debias", "name": "d", "flip": 0.2, "grader": noisy}).truths() == {"clean": Truth(1.0)}
    held = validate(audited(noisy, audit_threshold=7))
    assert (held.middle(), held.truths()) == (1.0, {"clean": Truth(1.0), "audit": Truth(7.0)})
    assert validate(audited(noisy, threshold=2)).middle() == 2.0
    with pytest.raises(InvalidRequest, match="finite"):
        validate(audited(threshold=float("nan")))


def test_graders_of_graders_pass_on_what_those_they_hold_know_of_themselves() -> None:
    noisy = {"type": "noisy", "name": "n", "grader": contains("a"), "flip": 0.2, "low": -1, "high": 3}
    parts = {"a": {**noisy, "pass_threshold": 2.0}, "b": contains("b")}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "a + b"}
    assert validate(multi).truths() == {"a.clean": Truth(1.0, "a", 2.0)}
    nested = {"type": "multi", "name": "o", "graders": {"m": multi}, "calculate_output": "m"}
    assert validate(nested).truths() == {"m.a.clean": Truth(1.0, "m.a", 2.0)}
    for around in (audited(multi), {"type": "noisy", "name": "n", "grader": multi}):
        spec = validate(around)
        assert spec.truths()["a.clean"] == Truth(1.0, "a", 2.0)
        assert spec.opinions() == validate(multi).opinions() == {"a": 2.0, "b": 0.5}
