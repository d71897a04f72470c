"""The memory plan at submission: on the job, refused where it cannot fit, with defaults that do where it can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest
from headrace_core.planning.devices import Devices
from headrace_gateway.operations.cache_memory import main_memory
from headrace_gateway.operations.memory_check import chosen, planned
from headrace_lab.paths import ADDER

from .conftest import Served, body

PARAM = "method.reinforcement.hyperparameters"
GIB = 2**30


def model_of(folder: Path, **changes: Any) -> Path:
    """The shipped model with another config.json."""
    shutil.copytree(ADDER / "model", folder / "model")
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder / "model"


async def test_a_job_carries_its_plan(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    made = (await client.fine_tuning.jobs.create(**body(training_file))).to_dict()
    plan: Any = (await client.fine_tuning.jobs.retrieve(str(made["id"]))).to_dict()["memory_plan"]
    assert plan == made["memory_plan"]
    (device,) = plan["devices"]
    assert device["total"] == sum(device["parts"].values()) < device["usable"] == main_memory()
    assert plan["kv_cache_tokens"] > 0
    assert plan["chosen"] == {}


async def test_a_model_larger_than_the_machine_is_refused(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path
) -> None:
    large = model_of(tmp_path, num_hidden_layers=2_000, intermediate_size=1_000_000)
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.fine_tuning.jobs.create(**body(training_file, model=str(large)))
    assert "does not fit on a machine of" in refusal.value.message
    assert await served.jobs.ids() == []


def test_defaults_are_replaced_and_told_and_what_was_given_stays(tmp_path: Path) -> None:
    wide = model_of(tmp_path, num_hidden_layers=64, intermediate_size=8192)
    settings = Hyperparameters.model_validate({"batch_size": 64, "token_budget": 8192})
    whole, _ = planned(
        wide, settings, settings.model_fields_set, Settings(), PARAM, lambda: Devices(1, 1000 * GIB, False)
    )
    assert whole == settings
    small = Devices(1, 24 * GIB, gpu=False)
    changed, plan = planned(wide, settings, {"token_budget"}, Settings(), PARAM, lambda: small)
    assert (changed.gradient_checkpointing, changed.token_budget) == (True, 8192)
    assert chosen(plan) == [("info", "gradient_checkpointing is true: so the job fits the machine's memory")]
    with pytest.raises(InvalidRequest, match="Set gradient_checkpointing to true") as refusal:
        planned(wide, settings, {"gradient_checkpointing", "token_budget"}, Settings(), PARAM, lambda: small)
    assert refusal.value.param == f"{PARAM}.gradient_checkpointing"


def test_there_is_no_plan_of_what_is_not_known(tmp_path: Path) -> None:
    model, settings = model_of(tmp_path, model_type="gpt2"), Hyperparameters.model_validate({})
    own = Devices(1, GIB, gpu=False)
    assert planned(model, settings, (), Settings(), PARAM, lambda: own) == (settings, None)
    assert planned(ADDER / "model", settings, (), Settings(), PARAM, lambda: None) == (settings, None)
    elsewhere = Settings(ray_address="node:6379")
    assert planned(ADDER / "model", settings, (), elsewhere, PARAM, lambda: own) == (settings, None)
    assert chosen(None) == []
