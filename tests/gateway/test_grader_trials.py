"""OpenAI's client tries graders, `grader_checks.validate` and `grader_checks.run`: a real gateway, real reward
processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.fine_tuning.alpha.grader_run_response import MetadataErrors
from openai.types.graders import StringCheckGraderParam

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import TimedOut
from headrace_core.protocols.grader_check import CheckedGrader, CheckReport, Failure, FailureKind, NotApplicable
from headrace_core.storage.dataset import read_rows
from headrace_gateway.grading import grader_checks
from headrace_gateway.grading.grader_checks import GraderTrials
from headrace_gateway.routes.graders import _answer, _named
from headrace_gateway.schemas.graders import GraderErrors

from .conftest import GRADER, Served, body

pytestmark = pytest.mark.slow

ALIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
BOTH: Any = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": GRADER, "alike": ALIKE},
    "calculate_output": "(exact + alike) / 2",
}


async def test_a_grader_is_run(client: AsyncOpenAI) -> None:
    ran = await client.fine_tuning.alpha.graders.run(grader=BOTH, model_sample="93!", item={"answer": "93"})
    assert ran.reward == pytest.approx(0.4)
    assert ran.sub_rewards == {"exact": 0.0, "alike": pytest.approx(0.8)}
    assert ran.metadata.scores == {"both": ran.reward, **ran.sub_rewards}
    assert (ran.metadata.name, ran.metadata.type, ran.metadata.token_usage) == ("both", "multi", None)
    assert 0 < ran.metadata.execution_time < 10
    assert ran.api_model_grader_token_usage_per_model == {}
    errors = ran.metadata.errors.to_dict(mode="json")
    assert set(errors) == GraderErrors.__required_keys__
    assert not any(errors.values())


async def test_output_json_is_parsed_from_the_sample(client: AsyncOpenAI) -> None:
    grader: Any = GRADER | {"input": "{{ sample.output_json.n }}"}
    right = await client.fine_tuning.alpha.graders.run(grader=grader, model_sample='{"n": 93}', item={"answer": "93"})
    assert right.reward == 1.0
    wrong = await client.fine_tuning.alpha.graders.run(grader=grader, model_sample="93", item={"answer": "93"})
    assert wrong.reward == 0.0, "the model wrote no JSON: that is no failure of the reward"
    assert wrong.metadata.model_extra is not None
    assert wrong.metadata.model_extra["failure"] is None
    assert wrong.metadata.errors.sample_parse_error
    assert not wrong.metadata.errors.invalid_variable_error


async def test_the_item_is_the_one_that_a_job_sees(client: AsyncOpenAI, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "90+3="}], "answer": "93"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (in_job,) = read_rows(tmp_path / "rows.jsonl")
    asked: Any = GRADER | {"input": "{{ item.messages }}|{{ item.messages[0].content }}"}
    ran = await client.fine_tuning.alpha.graders.run(
        grader=asked | {"reference": json.dumps(row["messages"]) + "|90+3="}, model_sample="", item=row
    )
    assert ran.reward == 1.0
    source = (
        "def grade(sample, item, prompt, messages):\n    assert item['messages'] == messages\n    return len(prompt)"
    )
    python: Any = {"type": "python", "name": "p", "source": source}
    ran = await client.fine_tuning.alpha.graders.run(grader=python, model_sample="", item=row)
    assert ran.reward == len("90+3=")
    assert (in_job.item, in_job.messages) == (row, row["messages"])


@pytest.mark.parametrize("messages", ["text", [1], None, {"a": 1}])
async def test_an_item_whose_messages_are_no_conversation_is_graded_all_the_same(
    client: AsyncOpenAI, messages: Any
) -> None:
    item = {"answer": "93", "messages": messages}
    grader = cast(StringCheckGraderParam, GRADER)
    ran = await client.fine_tuning.alpha.graders.run(grader=grader, model_sample="93", item=item)
    assert ran.reward == 1.0


async def test_an_error_in_a_users_code_is_told_once_with_its_traceback(client: AsyncOpenAI, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def r(completion):\n    return 1 / len(completion)\n")
    function = {"type": "function", "name": "r", "function": f"{tmp_path}/r.py:r"}
    grader: Any = {"type": "multi", "name": "m", "graders": [function], "calculate_output": "r"}
    ran = await client.fine_tuning.alpha.graders.run(grader=grader, model_sample="")
    errors = ran.metadata.errors
    assert ran.reward is None
    assert errors.python_grader_runtime_error
    assert "line 2, in r" in (errors.python_grader_runtime_error_details or "")
    assert [name for name, value in errors.to_dict(mode="json").items() if value is True] == [
        "python_grader_runtime_error"
    ]
    assert ran.metadata.model_extra is not None
    assert ran.metadata.model_extra["failure"]["message"] == "grader 'r': ZeroDivisionError: division by zero"


async def test_a_grader_is_validated_and_comes_back_complete(client: AsyncOpenAI) -> None:
    given: Any = BOTH | {"graders": [GRADER | {"name": "exact"}, ALIKE]}
    valid = await client.fine_tuning.alpha.graders.validate(grader=given)
    assert valid.grader is not None
    assert valid.grader.to_dict() == BOTH | {"graders": {"exact": GRADER | {"name": "exact"}, "alike": ALIKE}}


COOKBOOK: Any = {
    "type": "multi",
    "graders": {
        "explained": {
            "type": "text_similarity",
            "name": "how close the explanation is to the one that a physician wrote for the very same case " * 2,
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.réponse correcte }}{{ item.case-id }}",
            "evaluation_metric": "fuzzy_match",
            "pass_threshold": 0.8,
        },
        "code": {
            "type": "python",
            "source": "def grade(sample, item) -> float:\n    return 1.0",
            "image_tag": "2025-05-08",
            "pass_threshold": 0.5,
        },
    },
    "calculate_output": "(explained + code) / 2",
}


async def test_a_grader_as_openais_cookbook_writes_it(client: AsyncOpenAI) -> None:
    item = {"réponse correcte": "flu", "case-id": 7}
    ran = await client.fine_tuning.alpha.graders.run(grader=COOKBOOK, model_sample="flu7", item=item)
    assert (ran.reward, ran.metadata.name) == (1.0, "multi")
    valid = await client.fine_tuning.alpha.graders.validate(grader=COOKBOOK)
    assert valid.grader is not None
    complete = valid.grader.to_dict()
    held: Any = complete["graders"]
    assert (complete["name"], held["code"]["name"], held["code"]["pass_threshold"]) == ("multi", "code", 0.5)
    assert "pass_threshold" not in complete
    assert valid.model_extra is not None
    assert valid.model_extra["ignored"] == [
        "grader 'code': image_tag '2025-05-08': there is one environment, the service's"
    ]


async def test_a_job_tells_what_of_its_grader_has_no_effect(
    client: AsyncOpenAI, served: Served, training_file: str
) -> None:
    grader = {"type": "python", "source": "def grade(sample, item): return 1.0", "image_tag": "2025-05-08"}
    job = await client.fine_tuning.jobs.create(**body(training_file, grader=grader))
    warnings = [event.message for _, event in await served.jobs.events(job.id) if event.level == "warn"]
    assert warnings == [
        "Without effect: grader 'python': image_tag '2025-05-08': there is one environment, the service's"
    ]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"calculate_output": "exact +"}, "grader.calculate_output", "is not a formula"),
        ({"graders": {"exact": GRADER | {"operation": "about"}}}, "grader.graders.exact", "'ilike'"),
    ],
)
async def test_a_wrong_grader_is_refused_and_its_field_named(
    client: AsyncOpenAI, change: dict[str, Any], param: str, message: str
) -> None:
    wrong: Any = BOTH | change
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        await client.fine_tuning.alpha.graders.validate(grader=wrong)
    assert refused.value.param == param


async def test_a_wrong_grader_is_not_run(client: AsyncOpenAI) -> None:
    wrong: Any = GRADER | {"type": "vibes"}
    with pytest.raises(openai.BadRequestError, match="known types") as refused:
        await client.fine_tuning.alpha.graders.run(grader=wrong, model_sample="93")
    assert refused.value.param == "grader.type"


def test_the_errors_are_those_of_the_clients_type() -> None:
    theirs = {field.alias or name for name, field in MetadataErrors.model_fields.items()}
    assert GraderErrors.__required_keys__ == theirs


@pytest.mark.parametrize(
    ("grader", "kind", "message", "flags"),
    [
        ("string_check", "bad_input", "there is no 'item.answer'; 'item' has no keys", {"invalid_variable_error"}),
        ("python", "exception", "ValueError", {"python_grader_runtime_error"}),
        ("python", "timeout", "took long", {"python_grader_runtime_error", "unresponsive_reward_error"}),
        ("function", "crashed", "signal 9", {"python_grader_server_error"}),
        ("score_model", "bad_output", "the judge refused: no", {"model_grader_refusal_error"}),
        ("label_model", "invalid_value", "none of the labels", {"model_grader_parse_error"}),
        ("score_model", "unavailable", "500", {"model_grader_server_error"}),
        ("endpoint", "unavailable", "503", {"unresponsive_reward_error"}),
        ("multi", "invalid_value", "'a / b', of 1, 0", {"other_error"}),
    ],
)
def test_every_failure_has_a_name_of_openais(grader: str, kind: FailureKind, message: str, flags: set[str]) -> None:
    named = _named(grader, Failure(kind, message, "File …"))
    assert {name for name, value in named.items() if value is True} == flags
    assert set(named) <= GraderErrors.__required_keys__


def test_a_judge_is_named_and_what_does_not_apply_has_no_reward() -> None:
    judged = CheckReport(
        ok=True,
        error=None,
        grader={"type": "score_model", "model": "judge-1"},
        outcomes=[NotApplicable()],
        seconds=[0.5],
        parts=[CheckedGrader("style", "score_model")],
    )
    answer = _answer(judged)
    assert (answer["reward"], answer["sub_rewards"], answer["metadata"]["failure"]) == (None, {}, None)
    assert (answer["metadata"]["sampled_model_name"], answer["metadata"]["scores"]) == ("judge-1", {})
    assert not any(answer["metadata"]["errors"].values())


async def test_trials_wait_for_a_place_and_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("import time\ndef r(completion): time.sleep(60)\n")
    hangs = {"type": "function", "name": "r", "function": f"{tmp_path}/r.py:r"}
    monkeypatch.setattr(grader_checks, "_TRIALS_AT_ONCE", 1)
    monkeypatch.setattr(grader_checks, "_TRIAL_SECONDS", 1.0)
    trials = GraderTrials(RewardPermissions())  # who waits for a place does so for a second
    monkeypatch.setattr(grader_checks, "_TRIAL_SECONDS", 3.0)  # and who has it keeps it for longer
    first = asyncio.create_task(trials.verdict(hangs, [{"output_text": "a"}]))
    await asyncio.sleep(0)  # it has the place
    with pytest.raises(TimedOut, match="1 graders are being tried"):
        await trials.verdict(GRADER)
    with pytest.raises(TimedOut, match="longer than 3 s"):
        await first
