"""`headrace plan`: a job file's memory as a table and as JSON, in narrow and wide terminals; what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from headrace_core.errors import HeadraceError
from headrace_gateway.operations.cache_memory import main_memory
from headrace_lab.services import command_line

QWEN3_14B = {
    **{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 17408},
    **{"num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128},
}


ROW = re.compile(r"([a-zA-Z: ]+?) +([\d.,]+ [GM]iB)")


def job_file(folder: Path, config: dict[str, Any] | None, hyperparameters: str = "") -> str:
    """A job file beside a model folder of that config.json; None: with a shipped model."""
    (folder / "train.jsonl").write_text("{}\n")
    name = "headrace/tiny-adder"
    if config is not None:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(config))
        name = "./model"
    grader = '[grader]\ntype = "function"\nname = "r"\nfunction = "reward.py:r"\n'
    text = f'model = "{name}"\ntraining_file = "train.jsonl"\n{grader}[hyperparameters]\nn_steps = 2\n{hyperparameters}'
    (folder / "job.toml").write_text(text)
    return str(folder / "job.toml")


def headrace(*words: str, columns: int = 80) -> Result:
    return command_line.headrace("plan", *words, COLUMNS=str(columns))


@pytest.mark.parametrize("columns", [40, 80])
def test_table_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    told = headrace(job_file(tmp_path, QWEN3_14B), "--gpus", "8", "--memory", "80", columns=columns).output
    rows = {found[1].strip(): found[2] for line in told.splitlines() if (found := ROW.fullmatch(line))}
    assert len(rows) > 12
    assert max(len(line) for line in told.splitlines() if ROW.fullmatch(line)) <= columns
    assert rows["learner: optimizer"] == "27.51 GiB"
    assert rows["rollout: KV cache"] == "15.25 GiB"
    assert "14.8 billion parameters, 14.8 billion trained; 8 GPUs of 80 GiB" in told
    assert "learner (4 devices, each)" in told
    assert "KV cache: 99,942 tokens a rollout worker" in told
    assert "chosen: gradient_checkpointing = true" in told


def test_json_has_every_byte(tmp_path: Path) -> None:
    told = json.loads(headrace(job_file(tmp_path, QWEN3_14B), "--gpus", "8", "--memory", "80", "--json").output)
    assert told["parameters"] == told["trained"] == 14_768_307_200
    assert told["chosen"] == {"gradient_checkpointing": True, "learner_ranks": 4, "kv_cache_gib": 15.25}
    for device in told["devices"]:
        assert device["total"] == sum(device["parts"].values()) <= device["usable"]


def test_this_machine_is_planned_for_by_default(tmp_path: Path) -> None:
    told = json.loads(headrace(job_file(tmp_path, None), "--gpus", "0", "--json").output)
    (device,) = told["devices"]
    assert (device["processes"], device["usable"]) == ("learner + rollout", main_memory())
    assert told["chosen"] == {}


@pytest.mark.parametrize(
    ("config", "hyperparameters", "options", "named"),
    [
        (
            QWEN3_14B,
            "learner_ranks = 2",
            ("--gpus", "8", "--memory", "80"),
            "Set learner_ranks to 4 and gradient_checkpointing to true",
        ),
        (QWEN3_14B, "", ("--gpus", "8"), "--memory 80"),
        (QWEN3_14B, "learner_rank = 2", ("--gpus", "8", "--memory", "80"), "learner_rank"),
        ({"model_type": "mamba"}, "", ("--gpus", "8", "--memory", "80"), "no plan for a model of its family"),
    ],
)
def test_errors_name_what_to_change(
    tmp_path: Path, config: dict[str, Any], hyperparameters: str, options: tuple[str, ...], named: str
) -> None:
    told = headrace(job_file(tmp_path, config, hyperparameters), *options)
    assert told.exit_code == 1
    assert isinstance(told.exception, HeadraceError)
    assert named in told.exception.message
