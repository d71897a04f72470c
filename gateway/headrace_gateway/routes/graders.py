"""/v1/fine_tuning/alpha/graders: validate a grader, run it on one completion."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from headrace_core.storage.dataset import Row

from ..context import Context
from ..grading.grader_checks import GraderOutcome, Verdict
from ..grading.plausible_completions import sample
from ..schemas.graders import GraderRun, ValidatedGrader
from ..web.json_response import json_response

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])

_FLAGS = (
    "formula_parse_error", "invalid_variable_error", "model_grader_parse_error", "model_grader_refusal_error",
    "model_grader_server_error", "other_error", "python_grader_runtime_error", "python_grader_server_error",
    "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
)  # fmt: skip
_DETAILS = (
    "model_grader_server_error_details", "python_grader_runtime_error_details", "python_grader_server_error_type",
)  # fmt: skip
_PYTHON = ("python", "function")
_MODELS = ("score_model", "label_model")


class Validate(BaseModel):
    """The body of POST …/validate."""

    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]


class Run(BaseModel):
    """The body of POST …/run."""

    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] = {}


@router.post("/validate", response_model=ValidatedGrader)
async def validate(here: Context, body: Validate) -> Response:
    """The grader, complete; 400 where it cannot work."""
    verdict = await here.trials.verdict(body.grader)
    return json_response({"grader": verdict.grader, "ignored": verdict.ignored})


@router.post("/run", response_model=GraderRun)
async def run(here: Context, body: Run) -> Response:
    """What a grader makes of one completion; a failure has no reward, and is named in `metadata.errors`."""
    tried = sample(Row.of(body.item), body.model_sample)
    return json_response(_answer(await here.trials.verdict(body.grader, [tried])))


def _answer(verdict: Verdict) -> dict[str, Any]:
    (outcome,), (seconds,), whole = verdict.outcomes, verdict.seconds, verdict.parts[-1]
    errors: dict[str, Any] = dict.fromkeys(_FLAGS, False) | dict.fromkeys(_DETAILS)
    errors["sample_parse_error"] = bool(outcome.sample_fault)
    for part in verdict.parts:
        for failure in part.failures:
            errors |= _named(part.type, failure)
    return {
        "reward": outcome.value,
        "sub_rewards": outcome.components,
        "metadata": {
            "name": whole.name,
            "type": whole.type,
            "execution_time": seconds,
            "scores": {} if outcome.value is None else {whole.name: outcome.value} | outcome.components,
            "notes": outcome.notes,
            "errors": errors,
            "failure": _failure(outcome) if outcome.type == "failure" else None,
            "token_usage": None,
            "sampled_model_name": (verdict.grader or {}).get("model"),
        },
        "model_grader_token_usage_per_model": {},
    }


def _failure(outcome: GraderOutcome) -> dict[str, str]:
    return {"kind": outcome.kind, "message": outcome.message, "traceback": outcome.traceback}


def _named(grader: str, failure: GraderOutcome) -> dict[str, Any]:
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
