"""Chats are rendered in processes with limits: whatever a model's template does, the process that chats goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from headrace_core.errors import InvalidRequest, Unavailable
from headrace_core.protocols.chat import ChatConfig, ChatRequest
from headrace_gateway.chat import chat_prompts, json_schema_check
from headrace_gateway.chat.chat_prompts import ChatPrompts
from headrace_gateway.chat.json_schema_check import JsonSchemaCheck
from headrace_lab.waiting import wait_until_async
from headrace_rollout.prompts import Tokenizer

from .test_prompt_process import LOOPS, MODEL, model_with

CONTEXT = 128
ENDLESS = LOOPS.format("{% if i < 0 %}x{% endif %}")
GROWS = "{% set ns = namespace(a='x' * 9999) %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}"
ONLY_FOR = "{{% if messages[0].content == 'hostile' %}}{}{{% endif %}}{{{{ messages[0].content }}}}"
"""A template that does what is put in for one conversation only."""


def asked(content: str = "What is 37 + 56?") -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": content},))


def prompts_of(model: Path = MODEL, **changes: Any) -> ChatPrompts:
    config: dict[str, Any] = {
        "model": "somebody/model",
        "model_path": str(model),
        "engine": "transformers",
        "context": CONTEXT,
        "kv_cache_gib": 0.1,
        "threads": 1,
        "idle_seconds": 600.0,
        "start_timeout": 60.0,
    }
    return ChatPrompts(ChatConfig(**(config | changes)))


@pytest.fixture(autouse=True)
async def no_process_is_left() -> AsyncIterator[None]:
    yield
    left = [p for p in psutil.Process().children() if "headrace_gateway.chat.prompt_renderer" in p.cmdline()]
    _, left = await asyncio.to_thread(psutil.wait_procs, left, timeout=10)
    assert left == []


@pytest.fixture
async def prompts() -> AsyncIterator[ChatPrompts]:
    prompts = prompts_of()
    yield prompts
    await prompts.close()


async def test_the_ids_are_those_that_training_sees_and_one_process_makes_them_all(prompts: ChatPrompts) -> None:
    tokenizer = Tokenizer(MODEL)
    for content in ("What is 37 + 56?", "→ ü", "x" * 50):
        request = asked(content)
        assert list((await prompts.render(request)).token_ids) == tokenizer.prompt(request.messages).tolist()
    assert len(prompts._idle) == 1


@pytest.mark.parametrize(
    ("template", "why", "code"),
    [
        pytest.param(ENDLESS, "took longer than 1 s", "prompts_too_slow", marks=pytest.mark.slow),
        (LOOPS.format("{{ i ~ 'x' * 9999 }}"), r"needs more than 0\.5 GiB of memory", "prompts_too_large"),
        (GROWS, r"needs more than 0\.5 GiB of memory", "prompts_too_large"),
        (
            "{{ raise_exception('only tools talk here') }}",
            "template refuses.*: only tools talk here",
            "invalid_request",
        ),
        ("{{ messages[7].content.x.y }}", "template refuses.*has no element 7", "invalid_request"),
        ("{{ 'x' * 100000 }}", "tokens, more than the context of 128", "context_length_exceeded"),
        ("", "no tokens", "invalid_request"),
        ("{% for %}", r"chat template of .* is none, line 1", "damaged"),
    ],
    ids=["endless", "writes", "keeps", "raises", "fails", "long", "empty", "no template"],
)
async def test_a_template_beyond_its_limits_refuses_its_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, why: str, code: str
) -> None:
    monkeypatch.setattr(chat_prompts, "CPU_SECONDS", 1)
    monkeypatch.setattr(chat_prompts, "MEMORY_BYTES", 2**29)
    prompts = prompts_of(model_with(tmp_path, template))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=why) as refused:
            await prompts.render(asked())
        assert refused.value.code == code
    await prompts.close()


@pytest.mark.slow
async def test_other_chats_with_the_same_model_go_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_prompts, "CPU_SECONDS", 3)
    prompts = prompts_of(model_with(tmp_path, ONLY_FOR.format(ENDLESS)))
    hostile = asyncio.create_task(prompts.render(asked("hostile")))
    await asyncio.sleep(0)
    made = [(await prompts.render(asked("1 + 1"))).token_ids for _ in range(20)]
    assert len(set(made)) == 1
    assert not hostile.done(), "they waited for it"
    with pytest.raises(InvalidRequest, match="took longer than 3 s"):
        await hostile
    assert (await prompts.render(asked("1 + 1"))).token_ids == made[0]
    await prompts.close()


async def test_megabytes_are_refused_before_a_process_is_asked(prompts: ChatPrompts) -> None:
    with pytest.raises(InvalidRequest, match=rf"3900000 bytes, more than the context of {CONTEXT} tokens") as too_long:
        await prompts.render(asked("What is 1 + 1? " * 260_000))
    assert too_long.value.code == "context_length_exceeded"
    assert prompts._idle == []


async def test_where_none_is_free_in_time_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_prompts, "AT_ONCE", 1)
    prompts = prompts_of(model_with(tmp_path, ONLY_FOR.format(ENDLESS)))
    await prompts.render(asked())
    hostile = asyncio.create_task(prompts.render(asked("hostile")))
    await asyncio.sleep(0.1)
    monkeypatch.setattr(chat_prompts, "WAIT_SECONDS", 0.2)
    with pytest.raises(Unavailable, match="1 other chats") as busy:
        await prompts.render(asked())
    assert busy.value.code == "model_busy"
    hostile.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hostile


async def test_a_process_that_died_idle_is_replaced(prompts: ChatPrompts) -> None:
    before = await prompts.render(asked())
    (process,) = (p for p in psutil.Process().children() if "headrace_gateway.chat.prompt_renderer" in p.cmdline())
    process.kill()
    await wait_until_async(lambda: not prompts._idle[0].alive, "the idle process is dead")
    assert await prompts.render(asked()) == before


async def test_a_chat_that_is_refused_costs_no_process(prompts: ChatPrompts) -> None:
    await prompts.render(asked())
    (process,) = prompts._idle
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="tokens, more than the context"):
            await prompts.render(asked("1 + " * CONTEXT))
    await prompts.render(asked())
    assert prompts._idle == [process]
    assert process.alive


async def test_it_ends_where_the_pipe_of_its_questions_does() -> None:
    """Whoever asked may have been killed."""
    prompts = prompts_of()
    await prompts.render(asked())
    (process,) = (p for p in psutil.Process().children() if "headrace_gateway.chat.prompt_renderer" in p.cmdline())
    pipe = prompts._idle[0]._process.stdin
    assert pipe is not None
    pipe.close()
    await asyncio.to_thread(process.wait, 10)


async def test_what_it_writes_to_its_error_stream_stops_no_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: ChatPrompts
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.stderr.write('a warning\\n' * 100_000)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(chat_prompts, "WAIT_SECONDS", 20.0)
    assert (await prompts.render(asked())).token_ids
    assert len(prompts._idle[0]._stderr) <= chat_prompts._MAX_STDERR_BYTES


async def test_more_than_can_be_under_way_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_prompts, "AT_ONCE", 1)
    monkeypatch.setattr(chat_prompts, "MAX_WAITING", 1)
    prompts = prompts_of(model_with(tmp_path, ONLY_FOR.format(ENDLESS)))
    hostile = asyncio.create_task(prompts.render(asked("hostile")))
    await asyncio.sleep(0.1)
    waits = asyncio.create_task(prompts.render(asked()))
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable, match="1 other chats with somebody/model wait") as busy:
        await prompts.render(asked())
    assert busy.value.code == "model_busy"
    for task in (waits, hostile):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_process_that_was_busy_at_the_end_ends_with_its_question() -> None:
    prompts = prompts_of()
    under_way = asyncio.create_task(prompts.render(asked()))
    await asyncio.sleep(0.1)
    await prompts.close()
    assert (await under_way).token_ids
    assert prompts._idle == []


SCHEMA = json.dumps({"type": "object", "properties": {f"property {i}": {"type": "string"} for i in range(200)}})


def test_what_completions_cost_to_compile_their_schema_is_limited_for_all_of_them_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = JsonSchemaCheck((MODEL / "tokenizer.json").read_text())
    began = time.process_time()
    check.check(SCHEMA, 1)
    monkeypatch.setattr(json_schema_check, "MAX_COMPILE_SECONDS", 4 * (time.process_time() - began))
    check.check(SCHEMA, 1)
    with pytest.raises(InvalidRequest, match=r"once for each completion.*or ask for fewer completions") as refused:
        check.check(SCHEMA, 16)
    assert (refused.value.code, refused.value.param) == ("unsupported_json_schema", "response_format")


async def test_a_schema_that_many_completions_would_compile_too_long_is_refused(prompts: ChatPrompts) -> None:
    """It takes seconds, and vLLM would compile it for each completion."""
    properties = {f"property {i} of many": {"type": "string"} for i in range(4000)}
    large = json.dumps({"type": "object", "properties": properties, "additionalProperties": False})
    many = msgspec.structs.replace(asked(), json_schema=large, n=16)
    with pytest.raises(InvalidRequest, match="compiling it took") as refused:
        await prompts.render(many)
    assert refused.value.code == "unsupported_json_schema"
    few = msgspec.structs.replace(asked(), json_schema=SCHEMA, n=2)
    assert (await prompts.render(few)).token_ids
