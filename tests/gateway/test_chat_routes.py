"""POST /v1/chat/completions by OpenAI's client: over a real Redis and a real engine, in this process instead of Ray.

One gateway, with one loaded model, serves all tests but those that end or fill it, which have `own_chats`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
import pytest_asyncio
import uvicorn
from openai import AsyncOpenAI
from pydantic import BaseModel, Field, TypeAdapter

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.protocols.chat import ChatBegun, ChatConfig, ChatProgress, ChatRequest
from headrace_core.redis_access.client import connect, run
from headrace_gateway.app import create_app
from headrace_gateway.chat.chat_prompts import ChatPrompts
from headrace_gateway.models.catalog import Model
from headrace_gateway.schemas.chat import ChatCompletionChunk
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_rollout.chat.server import ChatServer

from .conftest import MODEL, Controllers

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION: list[Any] = [{"role": "user", "content": "What is 37 + 56?"}]
LIMIT = 60.0


class Answer(BaseModel):
    """What OpenAI's client is to parse."""

    answer: int = Field(ge=0, le=999)
    unit: Literal["kg", "m"]
    sure: bool


def held(schema: dict[str, Any], name: str = "n") -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth // 2):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@dataclass
class LocalChats:
    """The twin: each model's server in this process. `busy` makes it as full as a Ray of busy models."""

    servers: dict[str, tuple[ChatServer, ChatPrompts, asyncio.Task[None]]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    aborted: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    """Of each abort: whether the chat was still under way."""
    busy: bool = False

    async def begin(self, model: Model, request: ChatRequest) -> LocalChat:
        if self.busy:
            raise Unavailable("2 models may be chatted with at a time", code="chat_models_busy", retry_after=5)
        if model.name not in self.servers:
            config = ChatConfig(
                model=model.name,
                model_path=str(model.path),
                engine="transformers",
                context=model.context or 256,
                kv_cache_gib=0.1,
                threads=1,
                idle_seconds=600.0,
                start_timeout=LIMIT,
            )
            server = ChatServer(config)
            self.servers[model.name] = server, ChatPrompts(config), asyncio.create_task(server.run())
        server, prompts, _ = self.servers[model.name]
        begun = await server.begin(request, await prompts.render(request))
        assert begun is not None
        return LocalChat(self, server, begun)

    async def end(self, model: Model) -> None:
        self.ended.append(model.name)

    async def stop(self) -> None:
        for server, prompts, running in self.servers.values():
            await server.end(only_idle=False)
            await prompts.close()
            await asyncio.wait_for(running, LIMIT)


@dataclass
class LocalChat:
    chats: LocalChats
    server: ChatServer
    begun: ChatBegun

    @property
    def prompt_tokens(self) -> int:
        return self.begun.prompt_tokens

    async def read(self) -> ChatProgress:
        return await self.server.read(self.begun.id)

    def abort(self) -> None:
        self.chats.aborted.put_nowait(self.begun.id in self.server._chats)
        self._aborting = asyncio.ensure_future(self.server.abort(self.begun.id))


@asynccontextmanager
async def chat_gateway(chats: LocalChats, redis_url: str, data_dir: Path) -> AsyncIterator[str]:
    """The address of a gateway that chats in `chats`."""
    app = create_app(Settings(data_dir=data_dir), redis_url, Controllers(), chats)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await asyncio.wait_for(running, timeout=10)
    await chats.stop()


def openai_client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with connect(redis_server.url) as redis:
        await run(redis.flushall())
    async with chat_gateway(LocalChats(), redis_server.url, tmp_path_factory.mktemp("data")) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="module")
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with openai_client(url) as client:
        yield client


@pytest.fixture
def own_chats() -> LocalChats:
    """Of the test alone."""
    return LocalChats()


@pytest_asyncio.fixture(loop_scope="module")
async def own_url(own_chats: LocalChats, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[str]:
    """Of the gateway that has `own_chats`."""
    async with chat_gateway(own_chats, redis_server.url, tmp_path) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="module")
async def own_client(own_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with openai_client(own_url) as client:
        yield client


async def test_an_answer_whole_and_streamed_is_the_same(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert (whole.object, whole.model, len(whole.choices)) == ("chat.completion", MODEL, 1)
    assert whole.id.startswith("chatcmpl-")
    choice = whole.choices[0]
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "stop", None)
    assert choice.message.content
    usage = whole.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.role for c in chunks[1:-1]] == [None] * (len(chunks) - 2)
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_ends_with_done_and_tells_the_usage_only_if_asked(url: str) -> None:
    body = {"model": MODEL, "messages": QUESTION, "stream": True, "max_tokens": 4}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=body, timeout=LIMIT)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert TypeAdapter(list[ChatCompletionChunk]).validate_python(chunks) == chunks
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]


async def test_what_may_be_asked_for(client: AsyncOpenAI) -> None:
    asked = client.chat.completions.create
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "What is 37 + 56?"}]}]
    plain = await asked(model=MODEL, messages=QUESTION, temperature=0, user="me", metadata={"team": "a"})
    assert (await asked(model=MODEL, messages=parts, temperature=0)).choices[0].message == plain.choices[0].message
    said = plain.choices[0].message.content
    assert said is not None

    several = await asked(model=MODEL, messages=QUESTION, n=3, seed=5, temperature=1.5, max_completion_tokens=30)
    again = await asked(model=MODEL, messages=QUESTION, n=3, seed=5, temperature=1.5, max_completion_tokens=30)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.choices == again.choices
    assert len({choice.message.content for choice in several.choices}) > 1

    stopped = await asked(model=MODEL, messages=QUESTION, temperature=0, stop=[said[20:], said[10:14]])
    assert stopped.choices[0].message.content == said[: said.index(said[10:14])]

    measured = await asked(model=MODEL, messages=QUESTION, temperature=0, logprobs=True)
    logprobs = measured.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == said
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == said
    assert all(token.logprob <= 0 and token.top_logprobs == [] for token in logprobs.content)


async def test_what_clients_send_that_asks_for_nothing_is_taken(client: AsyncOpenAI) -> None:
    plain = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    asked = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        parallel_tool_calls=True,
        store=False,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        modalities=["text"],
        service_tier="auto",
        safety_identifier="u",
        prompt_cache_key="k",
    )
    assert asked.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"name": "n", "schema": {}}}}, "response_format"),
        ({"response_format": held({}, name="two words")}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": held({"x-guidance": {"lenient": True}})}, "response_format.json_schema.schema"),
        ({"response_format": held({"title": "x" * 300_000})}, "response_format.json_schema.schema"),
        ({"response_format": held(nested(60))}, "response_format.json_schema.schema"),
        ({"response_format": held({"type": "strange"})}, "response_format"),
        ({"response_format": held({"type": "array", "uniqueItems": True})}, "response_format"),
        ({"response_format": held({"$ref": "#/$defs/none"})}, "response_format"),
        ({"response_format": held({"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}})}, "response_format"),
        ({"response_format": held({"type": "array", "minItems": 10**9})}, "response_format"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
async def test_what_is_wrong_or_not_known_is_refused_by_name(
    client: AsyncOpenAI, changes: dict[str, Any], param: str | None
) -> None:
    body = {"model": MODEL, "messages": QUESTION} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/chat/completions", body=body, cast_to=object)
    if param is None:
        assert all(name in refused.value.message for name in changes)
    else:
        assert refused.value.param is not None
        assert refused.value.param.startswith(param)


async def test_openais_client_parses_what_it_asked_for(client: AsyncOpenAI) -> None:
    for seed in range(5):
        said = await client.chat.completions.parse(
            model=MODEL, messages=QUESTION, response_format=Answer, seed=seed, n=2
        )
        assert all(isinstance(choice.message.parsed, Answer) for choice in said.choices)
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Answer, max_tokens=3)

    ask = client.chat.completions.stream(model=MODEL, messages=QUESTION, response_format=Answer, temperature=0)
    async with ask as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        whole = await stream.get_final_completion()
    assert len(deltas) > 3
    assert "".join(deltas) == whole.choices[0].message.content
    assert isinstance(whole.choices[0].message.parsed, Answer)


async def test_any_json_object_and_what_follows_a_chat_is_not_held_to_it(client: AsyncOpenAI) -> None:
    plain = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    found = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, seed=1, n=16, logprobs=True
    )
    ended = [c for c in found.choices if c.finish_reason == "stop"]
    assert ended
    for choice in ended:
        assert isinstance(json.loads(choice.message.content or ""), dict)
        assert choice.logprobs is not None
    again = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert again.choices[0].message.content == plain.choices[0].message.content


async def test_a_schema_that_breaks_its_reader_harms_no_other_chat(client: AsyncOpenAI) -> None:
    async def hostile() -> None:
        with pytest.raises(openai.BadRequestError, match="make it smaller") as refused:
            await client.chat.completions.create(
                model=MODEL,
                messages=QUESTION,
                response_format=held({"type": "array", "minItems": 10**9}),  # type: ignore
            )
        assert (refused.value.code, refused.value.param) == ("unsupported_json_schema", "response_format")

    async def plain() -> str | None:
        said = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
        return said.choices[0].message.content

    _, *said = await asyncio.gather(hostile(), *(plain() for _ in range(8)))
    assert len(set(said)) == 1


async def test_a_model_that_does_not_exist_is_404_with_a_hint(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="headrace/tiny-addr", messages=QUESTION)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert f"did you mean {MODEL}" in missing.value.message


async def test_what_does_not_fit_the_context_is_400(client: AsyncOpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "What is 1 + 1? " * 100}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


async def test_a_busy_service_says_when_to_come_again(own_client: AsyncOpenAI, own_chats: LocalChats) -> None:
    own_chats.busy = True
    with pytest.raises(openai.InternalServerError) as busy:
        await own_client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert (busy.value.status_code, busy.value.code) == (503, "chat_models_busy")
    assert busy.value.response.headers["retry-after"] == "5"
    assert busy.value.response.headers["x-should-retry"] == "true"


async def test_a_client_that_leaves_a_stream_ends_its_chat(own_client: AsyncOpenAI, own_chats: LocalChats) -> None:
    stream = await own_client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=16, temperature=1.9, stream=True, logprobs=True
    )
    await anext(aiter(stream))
    await stream.close()
    assert await asyncio.wait_for(own_chats.aborted.get(), LIMIT), "it went on to its end"


async def test_a_client_that_leaves_before_its_answer_ends_its_chat(own_url: str, own_chats: LocalChats) -> None:
    body = {"model": MODEL, "messages": QUESTION, "n": 16, "temperature": 1.9}
    async with httpx.AsyncClient() as http:
        await http.post(f"{own_url}/v1/chat/completions", json=body | {"max_tokens": 1}, timeout=LIMIT)  # it is loaded
        assert not await own_chats.aborted.get()
        with pytest.raises(httpx.ReadTimeout):
            await http.post(f"{own_url}/v1/chat/completions", json=body, timeout=0.05)
    assert await asyncio.wait_for(own_chats.aborted.get(), LIMIT), "it went on to its end"


async def test_an_engine_that_ends_in_a_stream_is_an_error_in_the_stream(
    own_client: AsyncOpenAI, own_chats: LocalChats
) -> None:
    stream = await own_client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=16, temperature=1.9, stream=True, logprobs=True
    )
    pieces = aiter(stream)
    await anext(pieces)
    await own_chats.servers[MODEL][0].end(only_idle=False)
    with pytest.raises(openai.APIError, match="the model's process ends"):
        async for _ in pieces:
            pass
