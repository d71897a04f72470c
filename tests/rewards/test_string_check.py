"""`string_check`: its operations, and that a row without the answer is no wrong answer."""

from __future__ import annotations

import pytest

from headrace_core.protocols.grader_check import Failure, Score
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build


def grader(operation: str) -> dict[str, str]:
    return {
        "type": "string_check",
        "name": "answer",
        "input": "{{ sample.output_text }}",
        "reference": "<a>{{ item.answer }}</a>",
        "operation": operation,
    }


@pytest.mark.parametrize(
    ("operation", "scores"),
    [
        ("eq", [1, 0, 0, 0]),
        ("ne", [0, 1, 1, 1]),
        ("neq", [0, 1, 1, 1]),
        ("like", [1, 1, 0, 0]),
        ("ilike", [1, 1, 1, 0]),
    ],
)
async def test_operations(operation: str, scores: list[int]) -> None:
    reward = build(grader(operation))
    texts = ["<a>Yes</a>", "so <a>Yes</a>.", "SO <A>YES</A>.", "Yes"]
    outcomes = await reward.score([Sample(text, {"answer": "Yes"}) for text in texts])
    assert outcomes == [Score(float(score)) for score in scores]


async def test_a_row_without_the_answer_fails_and_its_neighbours_do_not() -> None:
    reward = build(grader("eq"))
    first, second = await reward.score([Sample("<a>1</a>", {"reply": 1}), Sample("<a>1</a>", {"answer": 1})])
    assert first == Failure("bad_input", "there is no 'item.answer'; 'item' has reply")
    assert second == Score(1.0)


NO_JSON = "there is no 'sample.output_json.x'; 'sample.output_json' is of type NoneType"


@pytest.mark.parametrize("kind", ["string_check", "text_similarity"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no json", NO_JSON),
        ("", NO_JSON),
        ('{"y": 1}', "there is no 'sample.output_json.x'; 'sample.output_json' has y"),
        ("[1]", "there is no 'sample.output_json.x'; 'sample.output_json' is a list of 1"),
    ],
)
async def test_a_completion_without_the_json_scores_0_and_says_so(kind: str, text: str, fault: str) -> None:
    how = {"operation": "ne"} if kind == "string_check" else {"evaluation_metric": "fuzzy_match"}
    reward = build(
        {"type": kind, "name": "x", "input": "{{sample.output_json.x}}", "reference": "{{ item.answer }}", **how}
    )
    lacking, other, faulty_row = await reward.score(
        [Sample(text, {"answer": "1"}), Sample('{"x": "2"}', {"answer": "1"}), Sample(text, {"reply": "1"})]
    )
    assert lacking == Score(0.0, sample_fault=fault)
    assert other == Score(float(kind == "string_check"))
    assert faulty_row == Failure("bad_input", "there is no 'item.answer'; 'item' has reply")
