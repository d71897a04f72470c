"""What can be known to be wrong is refused at submission: by name, with the place, and with nothing stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from headrace_core.storage.dataset import read_rows
from headrace_gateway.operations.cache_memory import main_memory
from headrace_lab.paths import ADDER

from .conftest import Served, body, rows

SETTINGS = "method.reinforcement.hyperparameters"


async def refused(client: AsyncOpenAI, served: Served, asked: dict[str, Any]) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.fine_tuning.jobs.create(**asked)
    assert await served.jobs.ids() == []
    assert served.controllers.ensured == []
    return refusal.value


async def upload(client: AsyncOpenAI, content: bytes, purpose: Any = "fine-tune") -> str:
    return (await client.files.create(file=("data.jsonl", content), purpose=purpose)).id


async def test_what_was_accepted_is_on_the_disk_of_redis(
    client: AsyncOpenAI, served: Served, training_file: str
) -> None:
    async def asked() -> int:
        """How often to write through."""
        stats = await served.redis.info("commandstats")
        return int(stats.get("cmdstat_config|set", {"calls": 0})["calls"])

    before = await asked()
    job = await client.fine_tuning.jobs.create(**body(training_file))
    assert (await served.jobs.get(job.id)).status == "queued"
    assert await asked() > before
    assert await served.redis.config_get("appendfsync") == {"appendfsync": "everysec"}


async def test_an_unknown_model_lists_the_known_ones(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    error = await refused(client, served, body(training_file, model="gpt-nothing"))
    assert (error.param, error.code) == ("model", "model_not_found")
    assert "a base model is headrace/tiny-adder" in error.message
    error = await refused(client, served, body(training_file, model="headrace/tiny-ader"))
    assert "did you mean headrace/tiny-adder" in error.message


async def test_a_folder_without_a_model(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path
) -> None:
    error = await refused(client, served, body(training_file, model=str(tmp_path)))
    assert "config.json" in error.message


async def test_a_folder_whose_path_cannot_be_in_a_models_name(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path
) -> None:
    """No route would lead to the model that is trained."""
    folder = tmp_path / "two\nlines"
    shutil.copytree(ADDER / "model", folder)
    error = await refused(client, served, body(training_file, model=str(folder)))
    assert (error.param, "control character" in error.message) == ("model", True)


async def test_a_missing_file(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    assert (await refused(client, served, body("file-none"))).param == "training_file"
    error = await refused(client, served, body(training_file, validation_file="file-none"))
    assert (error.param, error.code) == ("validation_file", "file_not_found")


async def test_a_file_of_another_purpose(client: AsyncOpenAI, served: Served) -> None:
    error = await refused(client, served, body(await upload(client, rows(1), "evals")))
    assert (error.param, error.code) == ("training_file", "wrong_purpose")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows(2) + b"\n{broken\n", "data.jsonl, line 4: not JSON"),
        (rows(1) + b'{"messages": []}\n', "data.jsonl, line 2: needs a list `messages`"),
        (b"\n\n", "data.jsonl holds no rows"),
    ],
)
async def test_broken_data_names_its_line(client: AsyncOpenAI, served: Served, content: bytes, message: str) -> None:
    error = await refused(client, served, body(await upload(client, content)))
    assert message in error.message
    assert (error.param, error.code) == ("training_file", "invalid_data")


async def test_a_prompt_longer_than_the_context_names_its_line(client: AsyncOpenAI, served: Served) -> None:
    file = await upload(client, rows(2) + b"\n" + rows(1, "plus " * 300))
    error = await refused(client, served, body(file))
    assert "data.jsonl, line 4: the prompt has " in error.message
    assert (error.param, error.code) == ("training_file", "prompt_too_long")


async def test_max_tokens_counts_into_the_context(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    error = await refused(client, served, body(training_file, hyperparameters={"max_tokens": 250}))
    assert "only 6 fit beside max_tokens" in error.message
    error = await refused(client, served, body(training_file, hyperparameters={"max_tokens": 300}))
    assert error.param == f"{SETTINGS}.max_tokens"


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("batchsize", 4, "did you mean 'batch_size'?"),
        ("temperature", -1, "greater than 0"),
        ("max_staleness", "many", "integer"),
        ("max_context", 4096, "the model takes 256 tokens"),
    ],
)
async def test_a_wrong_setting_is_named(
    client: AsyncOpenAI, served: Served, training_file: str, setting: str, value: Any, message: str
) -> None:
    error = await refused(client, served, body(training_file, hyperparameters={setting: value}))
    assert error.param == f"{SETTINGS}.{setting}"
    assert message in error.message


async def test_a_grader_with_a_syntax_error(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text("def correct(sample, item:\n")
    grader = {"type": "function", "name": "correct", "function": f"{tmp_path}/wrong.py:correct"}
    error = await refused(client, served, body(training_file, grader=grader))
    assert "wrong.py" in error.message
    assert str(error.param).startswith("method.reinforcement.grader")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def graded(sample, item): return float(sample['output_text'] == item['reply'])", "KeyError: 'reply'"),
        ("def graded(completion, reply): return 1.0", "argument 'reply' is neither a known name nor a key of the row"),
    ],
)
async def test_a_grader_that_cannot_work_on_the_rows(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path, source: str, says: str
) -> None:
    (tmp_path / "r.py").write_text(source)
    grader = {"type": "function", "name": "r", "function": f"{tmp_path}/r.py:graded"}
    error = await refused(client, served, body(training_file, grader=grader))
    assert error.param == "method.reinforcement.grader"
    assert says in error.message
    tolerant = body(training_file, grader=grader, hyperparameters={"max_reward_failures": 1.0})
    job = await client.fine_tuning.jobs.create(**tolerant)
    (told,) = [event for _, event in await served.jobs.events(job.id) if event.level == "warn"]
    assert says in told.message


async def test_what_the_trial_of_a_grader_shows_is_told(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path
) -> None:
    (tmp_path / "r.py").write_text(
        "def graded(completion): return float(completion.split()[-1] == '93')\n"
        "def trl(completions, completion_ids, answer):\n"
        "    rows = zip(completion_ids, completions, answer)\n"
        "    return [float(len(ids) > 0 and c[0]['content'] == a) for ids, c, a in rows]"
    )
    one = {"type": "function", "name": "one", "function": f"{tmp_path}/r.py:graded"}
    trl = {"type": "function", "name": "trl", "function": f"{tmp_path}/r.py:trl"}
    both = {"type": "multi", "name": "both", "graders": [one, trl], "calculate_output": "one + trl"}
    job = await client.fine_tuning.jobs.create(**body(training_file, grader=both))
    warnings = [event.message for _, event in await served.jobs.events(job.id) if event.level == "warn"]
    assert warnings == [
        "The reward was tried on the first row: grader 'one' failed on 2 of 6 completions that it was tried on, the "
        "first of them an empty text: exception: IndexError: list index out of range"
    ]
    stored = (await served.jobs.get(job.id)).grader
    assert [stored["graders"][name]["form"] for name in ("one", "trl")] == ["text", "messages"]


async def test_an_unknown_grader(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    error = await refused(client, served, body(training_file, grader={"type": "oracle", "name": "o"}))
    assert str(error.param).startswith("method.reinforcement.grader")


async def test_two_different_seeds(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    assert (await refused(client, served, body(training_file, seed=1, hyperparameters={"seed": 2}))).param == "seed"


async def test_every_default_is_filled_in(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    asked = body(training_file)
    asked["method"]["reinforcement"]["hyperparameters"] = {"batch_size": 4, "n_epochs": 2, "compute_multiplier": "auto"}
    job = await client.fine_tuning.jobs.create(**asked)
    stored = await served.jobs.get(job.id)
    settings = stored.hyperparameters
    assert (stored.rows, stored.total_steps) == (8, 4)
    assert (settings["max_context"], settings["eval_interval"], settings["checkpoint_interval"]) == (256, 1, 1)
    longest = settings["max_context"] - settings["max_tokens"]
    assert 5 < longest < 30  # tokens of the prompt: what nobody asked for gives way to it
    assert settings["learning_rate"] == pytest.approx(1e-5)


async def test_the_shipped_example_is_accepted(client: AsyncOpenAI, served: Served) -> None:
    head = b"".join((ADDER / "train.jsonl").read_bytes().splitlines(keepends=True)[:50])
    grader = {"type": "function", "name": "correct", "function": f"{ADDER}/reward.py:correct"}
    job = await client.fine_tuning.jobs.create(**body(await upload(client, head), grader=grader))
    stored = await served.jobs.get(job.id)
    assert stored.rows == len(read_rows(ADDER / "train.jsonl")[:50])
    assert json.loads(json.dumps(stored.grader))["function"].endswith("reward.py:correct")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"learning_rate_multiplier": 2.0}, {"learning_rate": 2e-5}),
        ({"compute_multiplier": 2.5}, {"group_size": 20}),
        ({"compute_multiplier": 0.5, "group_size": 12}, {"group_size": 6}),
        ({"n_epochs": "auto", "n_steps": "auto", "batch_size": 4}, {"n_epochs": 1, "batch_size": 4}),
        ({"reasoning_effort": "default", "max_tokens": "auto"}, {"batch_size": 4}),
        ({"eval_interval": 2, "eval_samples": 3}, {"eval_interval": 2, "eval_samples": 3}),
        (dict.fromkeys(("batch_size", "learning_rate_multiplier", "compute_multiplier", "eval_interval"), "auto"), {}),
    ],
)
async def test_openais_hyperparameters_mean_something(
    client: AsyncOpenAI, served: Served, training_file: str, asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file, hyperparameters=asked))
    stored = (await served.jobs.get(job.id)).hyperparameters
    assert {name: stored[name] for name in expected} == pytest.approx(expected)
    assert job.hyperparameters.learning_rate_multiplier == pytest.approx(stored["learning_rate"] / 1e-5)


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"reasoning_effort": "high"}, "", "max_tokens"),
        ({"top_p": 0.9}, "", "top_p: training samples from the whole distribution"),
        ({"compute_multiplier": 11}, ".compute_multiplier", "less than or equal to 10"),
        ({"compute_multiplier": 10, "group_size": 64}, ".group_size", "less than or equal to 256"),
        ({"compute_multiplier": 0.01}, "", "group_size must be at least 2"),
        ({"learning_rate": 1e-5, "learning_rate_multiplier": 1}, "", "not both"),
        ({"n_steps": 10**30}, ".n_steps", "less than or equal to"),
    ],
)
async def test_what_openais_hyperparameters_cannot_mean(
    client: AsyncOpenAI, served: Served, training_file: str, asked: dict[str, Any], param: str, message: str
) -> None:
    error = await refused(client, served, body(training_file, hyperparameters=asked))
    assert error.param == SETTINGS + param
    assert message in error.message


@pytest.mark.parametrize("form", ["text", "json_schema"])
async def test_completions_are_sampled_as_text(
    client: AsyncOpenAI, served: Served, training_file: str, form: str
) -> None:
    asked = body(training_file)
    asked["method"]["reinforcement"]["response_format"] = {"type": form}
    if form == "text":
        await client.fine_tuning.jobs.create(**asked)
    else:
        error = await refused(client, served, asked)
        assert error.param == "method.reinforcement.response_format"
        assert "reward" in error.message


@pytest.mark.parametrize(
    ("settings", "param", "message"),
    [
        ({"quantization": "fp8"}, ".quantization", "computed by GPUs, and this machine has none"),
        ({"tensor_parallel_size": 7}, ".tensor_parallel_size", "which tensor_parallel_size 7 does not divide"),
        (
            {"engine_options": {"seed": 3}},
            ".engine_options",
            "engine_options.seed: each rollout worker derives its own",
        ),
        ({"engine_options": {"blok_size": 3}}, ".engine_options", "engine_options.blok_size: it is none of those"),
        ({"engine": "transformers", "enforce_eager": True}, "", "enforce_eager is a setting of the engine vllm"),
    ],
)
async def test_settings_of_an_engine_that_cannot_be_are_refused(
    client: AsyncOpenAI, served: Served, training_file: str, settings: dict[str, Any], param: str, message: str
) -> None:
    error = await refused(client, served, body(training_file, hyperparameters=settings))
    assert error.param == SETTINGS + param
    assert message in error.message


async def test_a_cache_larger_than_the_machine_is_refused(
    client: AsyncOpenAI, served: Served, training_file: str
) -> None:
    settings: dict[str, float] = {"kv_cache_gib": 100_000}
    error = await refused(client, served, body(training_file, hyperparameters=settings))
    assert error.param == f"{SETTINGS}.kv_cache_gib"
    assert "kv_cache_gib is 100000, and the machine has" in error.message
    settings = {"kv_cache_gib": main_memory() / 2**30 / 2, "rollout_workers": 2}
    error = await refused(client, served, body(training_file, hyperparameters=settings))
    assert "for each of 2 rollout workers" in error.message
