"""A value in a request has the type of its field: true is not 1, and a text not the number in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from pydantic import BaseModel, ValidationError

from headrace_core.config.exact_model import ExactModel
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest
from headrace_gateway import app
from headrace_gateway.operations.settings_change import ChangeSettings
from headrace_gateway.schemas.jobs import CreateJob
from headrace_rewards.registry import validate

from .conftest import body


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for kind in model.__subclasses__():
        yield kind
        yield from _below(kind)


def _ours(model: type[BaseModel]) -> list[type[BaseModel]]:
    assert app is not None  # with its routes, every model is known
    found = {kind for kind in _below(model) if kind.__module__.startswith("headrace_")}
    return sorted(found, key=lambda kind: kind.__qualname__)


def _types(schema: dict[str, Any]) -> set[str]:
    """The JSON types that a field's schema allows at its top."""
    parts = schema.get("anyOf", [schema])
    return {part.get("type", "any") for part in parts if part.get("type") != "null" and "const" not in part}


FIELDS = [
    (model, name)
    for model in _ours(ExactModel)
    for name, schema in model.model_json_schema(by_alias=False).get("properties", {}).items()
    if name in model.model_fields and _types(schema) & {"integer", "number"} and not _types(schema) & {"boolean", "any"}
]


def test_everything_that_a_request_can_hold_is_exact() -> None:
    assert {kind for kind in _ours(BaseModel) if not issubclass(kind, ExactModel)} == {Settings}
    assert len(FIELDS) > 80


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [True, False, "1"], ids=str)
def test_no_number_is_made_of_another_value(model: type[BaseModel], name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate({name: value})
    said = {error["loc"]: error["msg"] for error in refused.value.errors()}
    assert re.search("no value of it: write (an integer|a number)", said[(name,)])


def test_values_within_lists_and_objects_are_looked_at_too() -> None:
    wrong = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "?"}], "range": [0, True]}
    with pytest.raises(InvalidRequest, match=r"range: .*true is no value of it"):
        validate(wrong)
    inner = {"type": "string_check", "operation": "eq", "input": "a", "reference": "b"}
    with pytest.raises(InvalidRequest, match=r"up: .*'0\.1' is no value of it"):
        validate({"type": "noisy", "grader": inner, "flip": {"up": "0.1"}})
    with pytest.raises(InvalidRequest, match=r"repetition_penalty: .*'no' is no value of it: write true or false"):
        validate({"type": "reasoning_pattern", "repetition_penalty": "no"})


def test_numbers_as_json_writes_them_are_taken() -> None:
    assert Hyperparameters.model_validate({"n_steps": 60.0, "learning_rate": 1, "filter_groups": True}).n_steps == 60
    assert ChangeSettings.model_validate({"max_staleness": 2.0}).max_staleness == 2
    with pytest.raises(ValidationError, match="fractional part"):
        ChangeSettings.model_validate({"max_staleness": 2.5})


def test_a_text_may_look_like_a_number(training_body: dict[str, Any]) -> None:
    made = CreateJob.model_validate(training_body | {"suffix": "7", "metadata": {"run": "1"}})
    assert (made.suffix, made.metadata) == ("7", {"run": "1"})


@pytest.fixture
def training_body() -> dict[str, Any]:
    return body("file-1")


@pytest.mark.parametrize("seed", [True, "7"])
async def test_a_job_with_such_a_seed_is_refused(client: AsyncOpenAI, training_file: str, seed: Any) -> None:
    with pytest.raises(BadRequestError, match="no value of it: write an integer") as refused:
        await client.fine_tuning.jobs.create(**body(training_file), seed=seed)
    assert refused.value.param == "seed"
