"""/v1/fine_tuning/alpha/graders: validate a grader, run it on one completion."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from headrace_core.protocols.grader_check import CheckReport, Failure, Score
from headrace_core.storage.dataset import Row

from ..context import Context
from ..grading.plausible_completions import sample
from ..schemas.base import RequestModel
from ..schemas.graders import GraderErrors, GraderFailure, GraderRun, ValidatedGrader
from ..web.json_response import json_response

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])

_NO_ERRORS: GraderErrors = {
    "formula_parse_error": False,
    "invalid_variable_error": False,
    "model_grader_parse_error": False,
    "model_grader_refusal_error": False,
    "model_grader_server_error": False,
    "model_grader_server_error_details": None,
    "other_error": False,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
}
_PYTHON = ("python", "function")
_MODELS = ("score_model", "label_model")


class Validate(RequestModel):
    """The body of POST …/validate."""

    grader: dict[str, Any]


class Run(RequestModel):
    """The body of POST …/run."""

    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] = Field({})


@router.post("/validate", response_model=ValidatedGrader)
async def validate(here: Context, body: Validate) -> Response:
    """The grader, complete; 400 where it cannot work."""
    verdict = await here.trials.verdict(body.grader)
    assert verdict.grader is not None  # of a grader that can be used
    return json_response(ValidatedGrader(grader=verdict.grader, ignored=verdict.ignored))


@router.post("/run", response_model=GraderRun)
async def run(here: Context, body: Run) -> Response:
    """What a grader makes of one completion; a failure has no reward, and is named in `metadata.errors`."""
    tried = sample(Row.of(body.item), body.model_sample)
    return json_response(_answer(await here.trials.verdict(body.grader, [tried])))


def _answer(verdict: CheckReport) -> GraderRun:
    (outcome,), (seconds,), whole = verdict.outcomes, verdict.seconds, verdict.parts[-1]
    score = outcome if isinstance(outcome, Score) else None
    errors: Any = _NO_ERRORS | {"sample_parse_error": score is not None and bool(score.sample_fault)}
    for part in verdict.parts:
        for failure in part.failures:
            errors |= _named(part.type, failure)
    return {
        "reward": score.value if score else None,
        "sub_rewards": score.components if score else {},
        "metadata": {
            "name": whole.name,
            "type": whole.type,
            "execution_time": seconds,
            "scores": {whole.name: score.value} | score.components if score else {},
            "notes": score.notes if score else {},
            "errors": errors,
            "failure": _failure(outcome) if isinstance(outcome, Failure) else None,
            "token_usage": None,
            "sampled_model_name": (verdict.grader or {}).get("model"),
        },
        "model_grader_token_usage_per_model": {},
    }


def _failure(outcome: Failure) -> GraderFailure:
    return {"kind": outcome.kind, "message": outcome.message, "traceback": outcome.traceback}


def _named(grader: str, failure: Failure) -> dict[str, Any]:
    """OpenAI's names for what went wrong in a grader of that type."""
    late = {"unresponsive_reward_error": True} if failure.kind == "timeout" else {}
    if failure.kind == "bad_input":
        return {"invalid_variable_error": True}
    if grader in _PYTHON:
        if failure.kind in ("crashed", "unavailable"):
            return {"python_grader_server_error": True, "python_grader_server_error_type": failure.kind}
        details = failure.traceback or failure.message
        return late | {"python_grader_runtime_error": True, "python_grader_runtime_error_details": details}
    if grader in _MODELS:
        if failure.kind in ("bad_output", "invalid_value"):
            refused = failure.message.startswith("the judge refused")
            return {"model_grader_refusal_error" if refused else "model_grader_parse_error": True}
        return late | {"model_grader_server_error": True, "model_grader_server_error_details": failure.message}
    return late or {"unresponsive_reward_error" if failure.kind == "unavailable" else "other_error": True}
