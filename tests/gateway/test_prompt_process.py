"""Prompts are counted in a process with limits: whatever file or model folder hold, the gateway stays small."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
from pathlib import Path

import httpx
import pytest

from headrace_core.errors import MAX_QUOTED_TEXT, InvalidRequest, Unavailable
from headrace_core.storage.dataset import MAX_BYTES_PER_TOKEN, read_rows
from headrace_gateway.models import prompt_process
from headrace_gateway.models.prompt_process import PromptChecks
from headrace_gateway.models.prompt_tokens import Prompts, check_prompts
from headrace_lab.paths import ADDER

from .conftest import MAX_UPLOAD_BYTES, Served, body, upload
from .test_envelope import error_of, http

__all__ = ["http"]

MODEL = ADDER / "model"
GIB = 1024**3
LOOPS = "{{% for i in range(99999) %}}{{% for j in range(99999) %}}{}{{% endfor %}}{{% endfor %}}"
"""Ten thousand million times what is put in."""


def model_with(folder: Path, template: str) -> Path:
    for file in MODEL.iterdir():
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def data(folder: Path, *contents: str) -> Path:
    file = folder / "train.jsonl"
    rows = [json.dumps({"messages": [{"role": "user", "content": content}]}) for content in contents]
    file.write_text("\n".join(rows) + "\n")
    return file


async def measured(file: Path, model: Path = MODEL, room: int = 1000) -> Prompts:
    return await PromptChecks().measured(model, file, "train.jsonl", None, room, None)


async def test_it_finds_what_counting_here_finds() -> None:
    file = ADDER / "validation.jsonl"
    assert await measured(file) == check_prompts(MODEL, read_rows(file), "train.jsonl", 1000)


async def test_a_refusal_comes_back_with_its_code_and_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"train\.jsonl, line 2: the prompt has \d+ tokens") as refused:
        await measured(data(tmp_path, "1 + 1", "1 + 1 " * 50), room=20)
    assert refused.value.code == "prompt_too_long"


async def test_a_line_of_megabytes_is_refused_before_it_is_tokenised(tmp_path: Path) -> None:
    """By then a process of 256 MiB would have ended: tokenising takes 200 times as much as the text."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = data(tmp_path, "1", "x" * 10_000_000)
    told = rf"line 2: the prompt has 10000000 bytes, and 1000 tokens.* are {1000 * MAX_BYTES_PER_TOKEN} bytes at most"
    with pytest.raises(InvalidRequest, match=told):
        await measured(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.parametrize(
    "template",
    [
        LOOPS.format("{{ i ~ 'x' * 9999 }}"),
        "{% set ns = namespace(a='x' * 9999) %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    ],
    ids=["what it writes", "what it keeps"],
)
async def test_a_template_that_grows_without_end_is_refused(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_process, "MEMORY_BYTES", GIB // 2)
    with pytest.raises(
        InvalidRequest, match=r"needs more than 0\.5 GiB of memory: look at the chat template"
    ) as refused:
        await measured(data(tmp_path, "1"), model_with(tmp_path, template))
    assert refused.value.code == "prompts_too_large"


async def test_of_a_refusal_of_megabytes_the_gateway_is_told_the_ends(tmp_path: Path) -> None:
    model = model_with(tmp_path, "{{ raise_exception('no ' * 10000000 ~ 'tools') }}")
    with pytest.raises(InvalidRequest, match=r"(?s)line 1: .*refuses the messages: no no .* … .*no tools$") as refused:
        await measured(data(tmp_path, "1"), model)
    assert len(refused.value.message) < 2 * MAX_QUOTED_TEXT


async def test_a_template_that_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_process, "SECONDS", 2.0)
    template = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% if i < 0 %}x{% endif %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(InvalidRequest, match="took longer than 2 s: look at the chat template") as refused:
        await measured(data(tmp_path, "1"), model_with(tmp_path, template))
    assert refused.value.code == "prompts_too_slow"


async def test_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_process, "AT_ONCE", 1)
    monkeypatch.setattr(prompt_process, "SECONDS", 0.5)  # of the wait for a place
    checks, file = PromptChecks(), data(tmp_path, "1")
    monkeypatch.setattr(prompt_process, "SECONDS", 60.0)  # of a check
    endless = model_with(tmp_path, LOOPS.format(""))
    first = asyncio.create_task(checks.measured(endless, file, "a", None, 100, None))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="1 other files"):
        await checks.measured(MODEL, file, "b", None, 100, None)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await checks.measured(MODEL, file, "b", None, 100, None)).rows == 1


async def test_a_submission_names_field_and_line(http: httpx.AsyncClient, served: Served) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "1" * (MAX_UPLOAD_BYTES - 1000)}]}).encode()
    uploaded = (await http.post("/v1/files", **upload(row, "train.jsonl"))).json()["id"]
    error = error_of(await http.post("/v1/fine_tuning/jobs", json=body(uploaded)), 400)
    assert (error["param"], error["code"]) == ("training_file", "prompt_too_long")
    assert "train.jsonl, line 1: the prompt has 199000 bytes" in error["message"]
    assert await served.jobs.all() == []
