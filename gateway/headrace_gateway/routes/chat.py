"""/v1/chat/completions: any base model and any trained one, answered whole or as a stream.

Invariant: a chat whose client has gone is aborted in the model's process, streamed or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from headrace_core.errors import HeadraceError
from headrace_core.protocols.chat import ChatPart, ChatProgress, ChatToken, FinishReason
from headrace_core.types.job import new_id

from ..chat.chat_pool import ChatConnection
from ..context import Context
from ..events.sse_response import SseResponse
from ..schemas.base import ErrorAnswer
from ..schemas.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CreateChatCompletion,
    Delta,
    Logprobs,
    TokenLogprob,
    Usage,
)
from ..web.errors import error_response_for
from ..web.json_response import CLIENT_LEFT, json_response

router = APIRouter(prefix="/v1/chat", tags=["chat"])

_IMPOSSIBLE = -9999.0
"""For a log-probability of minus infinity, which JSON cannot say; OpenAI's own number for it."""


@router.post(
    "/completions",
    response_model=ChatCompletion,
    responses={
        200: {
            "description": "The completion; with `stream` a `ChatCompletionChunk` an event, then `data: [DONE]`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        404: {"model": ErrorAnswer, "description": "There is no such model."},
    },
)
async def create(here: Context, body: CreateChatCompletion, request: Request) -> Response:
    """What a model says next in a conversation. The first request for a model loads it, which takes a while."""
    model = await here.models.get(body.model)
    chat = await here.chats.begin(model, body.request())
    answer = _Answer(body, chat.prompt_tokens)
    if body.stream:
        return SseResponse(_events(chat, answer, body))
    try:
        async for progress in _progress(chat):
            if await request.is_disconnected():
                return Response(status_code=CLIENT_LEFT)
            answer.add(progress)
    finally:
        chat.abort()
    return json_response(answer.whole())


async def _progress(chat: ChatConnection) -> AsyncIterator[ChatProgress]:
    """Every reading of it, to its end."""
    while True:
        progress = await chat.read()
        yield progress
        if progress.ended:
            return


async def _events(chat: ChatConnection, answer: _Answer, body: CreateChatCompletion) -> AsyncGenerator[bytes, None]:
    """The role of every choice, its parts as they come, how it ended; then the usage if it was asked for."""
    try:
        for index in range(body.n or 1):
            yield _event(msgspec.json.encode(answer.chunk(_chunk_choice(index, {"role": "assistant", "content": ""}))))
        async for progress in _progress(chat):
            answer.add(progress)
            if not progress.parts:
                yield b": still at it\n\n"
            for part in progress.parts:
                for choice in answer.choices_of(part):
                    yield _event(msgspec.json.encode(answer.chunk(choice)))
        if answer.counts_usage:
            yield _event(msgspec.json.encode(answer.chunk(None)))
        yield _event(b"[DONE]")
    except HeadraceError as error:  # the status is long sent; the client raises what an event says
        yield _event(bytes(error_response_for(error).body))
    finally:
        chat.abort()


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class _Answer:
    """One answer as it comes together."""

    def __init__(self, body: CreateChatCompletion, prompt_tokens: int) -> None:
        self._id = new_id("chatcmpl-")
        self._created = int(time.time())
        self._body = body
        self.counts_usage = body.stream_options is not None and body.stream_options.include_usage
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._parts: list[list[ChatPart]] = [[] for _ in range(body.n or 1)]

    def add(self, progress: ChatProgress) -> None:
        """What a reading brought."""
        self._completion_tokens = progress.completion_tokens
        for part in progress.parts:
            self._parts[part.choice].append(part)

    def whole(self) -> ChatCompletion:
        """After the end."""
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._body.model,
            "choices": [self._choice(index, parts) for index, parts in enumerate(self._parts)],
            "usage": self._usage(),
        }

    def chunk(self, choice: ChunkChoice | None) -> ChatCompletionChunk:
        """A part of one choice; without one, the usage."""
        chunk: ChatCompletionChunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._body.model,
            "choices": [] if choice is None else [choice],
        }
        if self.counts_usage:
            chunk["usage"] = self._usage() if choice is None else None
        return chunk

    def choices_of(self, part: ChatPart) -> list[ChunkChoice]:
        """A part as it is streamed: its text, if it has any, and apart from it how the choice ended."""
        choices = []
        if part.text or part.tokens:
            choices.append(_chunk_choice(part.choice, {"content": part.text}, self._logprobs(part.tokens)))
        if part.finish_reason is not None:
            choices.append(_chunk_choice(part.choice, {}, finish_reason=part.finish_reason))
        return choices

    def _choice(self, index: int, parts: Sequence[ChatPart]) -> Choice:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(part.text for part in parts), "refusal": None},
            "logprobs": self._logprobs([token for part in parts for token in part.tokens]),
            "finish_reason": next(part.finish_reason for part in parts if part.finish_reason is not None),
        }

    def _usage(self) -> Usage:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }

    def _logprobs(self, tokens: Sequence[ChatToken]) -> Logprobs | None:
        if not self._body.logprobs:
            return None
        return {"content": [_logprob(token) for token in tokens], "refusal": None}


def _chunk_choice(
    index: int, delta: Delta, logprobs: Logprobs | None = None, finish_reason: FinishReason | None = None
) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprob(token: ChatToken) -> TokenLogprob:
    whole = "\ufffd" not in token.text
    return {
        "token": token.text,
        "bytes": list(token.text.encode()) if whole else None,
        "logprob": token.logprob if math.isfinite(token.logprob) else _IMPOSSIBLE,
        "top_logprobs": [],
    }
