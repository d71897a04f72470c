"""Chats with the shipped adder, by the real transformers engine, in this process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace_core.errors import InvalidRequest, NotFound, Unavailable
from headrace_core.protocols.chat import ChatBegun, ChatConfig, ChatProgress, ChatPrompt, ChatRequest
from headrace_lab.paths import ADDER
from headrace_lab.waiting import wait_until_async
from headrace_rollout.chat import server as chat_module
from headrace_rollout.chat.server import ChatServer
from headrace_rollout.engines import create
from headrace_rollout.engines.engine import EngineConfig, SamplingConfig
from headrace_rollout.prompts import Tokenizer

MODEL = ADDER / "model"
CONTEXT = 128
LIMIT = 60.0


def asked(content: str = "What is 37 + 56?", **changes: Any) -> ChatRequest:
    fields: dict[str, Any] = {"messages": ({"role": "user", "content": content},), "temperature": 0.0}
    return ChatRequest(**fields | changes)


@asynccontextmanager
async def serving(
    model: Path = MODEL, idle_seconds: float = 600.0
) -> AsyncIterator[tuple[ChatServer, asyncio.Task[None]]]:
    config = ChatConfig(
        model="adder",
        model_path=str(model),
        engine="transformers",
        context=CONTEXT,
        kv_cache_gib=0.1,
        threads=1,
        idle_seconds=idle_seconds,
        start_timeout=LIMIT,
    )
    server = ChatServer(config)
    running = asyncio.create_task(server.run())
    yield server, running
    await server.end(only_idle=False)
    await asyncio.wait_for(running, LIMIT)


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with serving() as (server, _):
        yield server


async def begin(server: ChatServer, request: ChatRequest) -> ChatBegun | None:
    ids = Tokenizer(MODEL).prompt(request.messages)
    return await server.begin(request, ChatPrompt(token_ids=tuple(ids.tolist())))


async def read_all(server: ChatServer, request: ChatRequest) -> list[ChatProgress]:
    begun = await begin(server, request)
    assert begun is not None
    read = [await server.read(begun.id)]
    while not read[-1].ended:
        read.append(await server.read(begun.id))
    return read


def text_of(read: list[ChatProgress], choice: int = 0) -> str:
    return "".join(part.text for progress in read for part in progress.parts if part.choice == choice)


def reasons(read: list[ChatProgress]) -> dict[int, str]:
    return {p.choice: p.finish_reason for progress in read for p in progress.parts if p.finish_reason is not None}


async def test_a_greedy_chat_says_what_evaluation_makes_of_the_same_prompt(server: ChatServer) -> None:
    engine, tokenizer = create("transformers", EngineConfig(MODEL, max_model_len=CONTEXT)), Tokenizer(MODEL)
    await engine.start()
    try:
        for question in ("What is 37 + 56?", "What is 5 + 8?", "What is 99 + 99?"):
            prompt = tokenizer.prompt([{"role": "user", "content": question}])
            sampled = await engine.generate(prompt, SamplingConfig(48, temperature=0.0))
            read = await read_all(server, asked(question, max_tokens=48))
            assert text_of(read) == tokenizer.text(sampled.token_ids)
            assert reasons(read) == {0: sampled.finish_reason}
            assert read[-1].completion_tokens == len(sampled.token_ids)
    finally:
        await engine.close()


async def test_it_is_told_as_it_is_said(server: ChatServer) -> None:
    read = await read_all(server, asked())
    assert len(read) > 3
    tokens = [token for progress in read for part in progress.parts for token in part.tokens]
    assert "".join(token.text for token in tokens) == text_of(read)
    assert all(token.logprob <= 0 for token in tokens)
    assert read[-1].completion_tokens == len(tokens) + 1, "the token that ended it says nothing, and counts"


async def test_a_completion_ends_before_the_first_stop_string(server: ChatServer) -> None:
    whole = text_of(await read_all(server, asked()))
    stop = whole[12:19]
    read = await read_all(server, asked(stop=(whole[30:], stop)))
    assert text_of(read) == whole[: whole.index(stop)]
    assert reasons(read) == {0: "stop"}
    assert not any(stop[0] == part.text[-1:] for p in read for part in p.parts), "a part of a stop string was given out"
    assert read[-1].completion_tokens < (await read_all(server, asked()))[-1].completion_tokens
    await wait_until_async(lambda: idle(server), "the engine is idle", pause=0.01)


async def test_completions_of_one_request_differ_and_a_seed_repeats_them(server: ChatServer) -> None:
    request = asked(temperature=1.5, n=4, seed=7, max_tokens=40)
    first, second = await asyncio.gather(read_all(server, request), read_all(server, request))
    texts = [text_of(first, choice) for choice in range(4)]
    assert len(set(texts)) > 1
    assert texts == [text_of(second, choice) for choice in range(4)]
    assert sorted(reasons(first)) == [0, 1, 2, 3]


async def test_a_completion_that_reaches_its_length_says_so(server: ChatServer) -> None:
    read = await read_all(server, asked(max_tokens=3))
    assert reasons(read) == {0: "length"}
    assert read[-1].completion_tokens == 3


async def test_what_does_not_fit_the_context_is_refused(server: ChatServer) -> None:
    with pytest.raises(InvalidRequest, match=f"more than the context of {CONTEXT}") as too_long:
        await begin(server, asked("What is 1 + 1? " * 50))
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(InvalidRequest, match="lower max_completion_tokens"):
        await begin(server, asked(max_tokens=CONTEXT))
    assert (await server.facts()).chats == 0


async def test_an_aborted_chat_frees_the_engine(server: ChatServer) -> None:
    begun = await begin(server, asked(temperature=1.9, n=8))
    assert begun is not None
    await server.read(begun.id)
    await server.abort(begun.id)
    await wait_until_async(lambda: idle(server), "the engine is idle", pause=0.01)
    with pytest.raises(NotFound, match="not read for too long"):
        await server.read(begun.id)
    await server.abort(begun.id)


async def test_a_chat_that_nobody_reads_is_ended(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "ABANDONED_SECONDS", 0.01)
    assert await begin(server, asked(temperature=1.9, n=8)) is not None
    await wait_until_async(lambda: idle(server), "the engine is idle", pause=0.01)


async def test_an_idle_model_ends_and_answers_none_from_then_on() -> None:
    async with serving(idle_seconds=0.2) as (server, running):
        assert text_of(await read_all(server, asked()))
        await asyncio.wait_for(asyncio.shield(running), LIMIT)
        assert await begin(server, asked()) is None
        assert (await server.facts()).ready


async def test_only_an_idle_one_is_ended_for_another() -> None:
    async with serving() as (server, running):
        assert not await server.end(only_idle=True), "it was being loaded"
        begun = await begin(server, asked(temperature=1.9, n=8))
        assert begun is not None
        assert not await server.end(only_idle=True)
        await server.abort(begun.id)
        assert await server.end(only_idle=True)
        assert await begin(server, asked()) is None
        await asyncio.wait_for(running, LIMIT)


async def test_chats_under_way_are_told_that_the_model_ends() -> None:
    async with serving() as (server, running):
        begun = await begin(server, asked(temperature=1.9, n=8))
        assert begun is not None
        await server.read(begun.id)
        await server.end(only_idle=False)
        await asyncio.wait_for(running, LIMIT)
        with pytest.raises(Unavailable, match="the model's process ends"):
            await server.read(begun.id)


async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "FAILED_SECONDS", 0.1)
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    async with serving(tmp_path / "model") as (server, running):
        with pytest.raises(Unavailable, match="adder could not be loaded") as failed:
            await begin(server, asked())
        assert failed.value.code == "model_not_loaded"
        await asyncio.wait_for(asyncio.shield(running), LIMIT)


async def idle(server: ChatServer) -> bool:
    return server._engine.running == 0 and (await server.facts()).chats == 0


def test_half_a_character_is_held_back() -> None:
    """By a tokenizer of bytes, as every byte-level one is at its worst: three tokens of one character."""
    from headrace_rollout.chat.text_stream import TextStream

    class Bytes(Tokenizer):
        def __init__(self) -> None:
            pass

        def text(self, token_ids: np.ndarray[Any, Any]) -> str:
            return bytes(token_ids.tolist()).decode(errors="replace")

        exact_text = text

    text = TextStream(Bytes(), stop=("→b",))
    given = []
    for token in "a→a→bc".encode():
        if not text.stopped:
            text.add(token, -1.0)
            given.append(text.take(ended=False)[0])
    assert given == ["a", "", "", "", "→a", "", "", "", ""]
    assert text.stopped
    text.end()
    assert text.take(ended=True) == ("", ())

    cut = TextStream(Bytes(), stop=())
    for token in "a→".encode()[:3]:
        cut.add(token, -1.0)
    cut.end()
    shown, tokens = cut.take(ended=True)
    assert shown == b"a\xe2\x86".decode(errors="replace")
    assert len(tokens) == 3
