"""Serves chats with one model, on the same engines, chat template and greedy decoding as training and evaluation.

    run ──► engine starts ──► ready ──► idle too long, or end() ──► chats aborted, engine closed
                              begin ──► one task per chat: n requests to the engine, token by token ──► TextStream
                              read  ◄── waits for new tokens ◄──────────────────────────────────────────────┘

Invariants: `run` ends when the engine is idle for too long, or fails. From the moment `run` begins to end, `begin`
returns None. A chat ends when it is read to its end, aborted, or not read for `ABANDONED_SECONDS` (its reader died);
its requests to the engine end with it.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace_core.concurrency import all_or_none, cancel, first_to_end
from headrace_core.errors import HeadraceError, InvalidRequest, NotFound, Unavailable
from headrace_core.protocols.chat import (
    ChatBegun,
    ChatConfig,
    ChatFacts,
    ChatPart,
    ChatProgress,
    ChatPrompt,
    ChatRequest,
)
from headrace_core.seeds import derived_seed

from ..engines import create
from ..engines.engine import Engine, EngineConfig, EngineFailure, RequestRefused, SamplingConfig
from ..prompts import Tokenizer
from .text_stream import TextStream

MAX_CHATS = 256
"""Chats with one model at a time; more are refused."""
MAX_RUNNING = 32
"""Completions decoded at once; more wait for a slot."""
ABANDONED_SECONDS = 60.0
"""A chat that is not read for this long is aborted."""
READ_SECONDS = 5.0
"""Longest wait of a `read` for new tokens."""
POLL_SECONDS = 0.5
"""Between two checks for abandoned chats, and for idleness."""
FAILED_SECONDS = 10.0
"""For how long a model that could not be loaded is not tried again; requests get the reason meanwhile."""


class ChatServer:
    """The chats with one model. `run` it as a task; the other methods may be called concurrently."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._engine = create(config.engine, _engine_config(config))
        self._chats: dict[str, Chat] = {}
        self._used = time.monotonic()
        self._started, self._end, self._broken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._failure: str | None = None
        self._ending = False

    async def run(self) -> None:
        """Serve until the model was idle for long enough, could not be loaded or failed, or `end` is called."""
        loops = (self._serve, self._end.wait, self._broken.wait)
        try:
            await first_to_end([asyncio.ensure_future(loop()) for loop in loops])
        finally:
            self._ending = True
            self._started.set()
            await asyncio.gather(*(chat.abort() for chat in self._chats.values()))
            await self._engine.close()

    async def begin(self, request: ChatRequest, prompt: ChatPrompt) -> ChatBegun | None:
        """Start a chat once the model is loaded. None: this process is ending, and another one must be used.

        `prompt` is the tokenised prompt of the request. Raises `InvalidRequest` for a request that the model cannot
        serve, `Unavailable` if it cannot answer.
        """
        await self._started.wait()
        if self._failure is not None:
            raise Unavailable(self._failure, code="model_not_loaded")
        if self._ending:
            return None
        if len(self._chats) >= MAX_CHATS:
            message = f"{self._config.model} is in {MAX_CHATS} chats, and takes no more until one of them ends"
            raise Unavailable(message, code="model_busy", retry_after=1)
        ids = np.array(prompt.token_ids, np.int32)
        chat = Chat(self._engine, self._tokenizer, request, ids, self._free_tokens(request, len(ids)), self._broken)
        chat_id = uuid.uuid4().hex
        self._chats[chat_id] = chat
        return ChatBegun(chat_id, len(ids))

    async def read(self, chat_id: str) -> ChatProgress:
        """What a chat has sampled since the last read; waits up to `READ_SECONDS` for it. Raises the error that ended
        the chat."""
        chat = self._chats.get(chat_id)
        if chat is None:
            raise NotFound(f"{self._config.model} has no chat {chat_id}: it has ended, or was not read for too long")
        try:
            progress = await chat.read()
        except HeadraceError:
            self._forget(chat_id)
            raise
        if progress.ended:
            self._forget(chat_id)
        return progress

    async def abort(self, chat_id: str) -> None:
        """Abort a chat, if it has not ended."""
        if chat_id in self._chats:
            await self._forget(chat_id).abort()

    async def end(self, only_idle: bool) -> bool:
        """End `run`. With `only_idle`, not while there are chats or the model is still loading. Returns whether it
        ends."""
        if only_idle and (self._chats or not self._started.is_set()):
            return False
        self._ending = True
        self._end.set()
        return True

    async def facts(self) -> ChatFacts:
        """How busy the server is, for the gateway."""
        idle = 0.0 if self._chats else time.monotonic() - self._used
        return ChatFacts(self._config.model, self._started.is_set(), len(self._chats), idle)

    async def _serve(self) -> None:
        """Load the model, and abort abandoned chats; returns when it was idle for long enough."""
        try:
            await self._engine.start()
            self._tokenizer = await asyncio.to_thread(Tokenizer, Path(self._config.model_path))
        except (HeadraceError, OSError, ValueError) as error:
            self._failure = f"{self._config.model} could not be loaded: {error}"
            self._started.set()
            await asyncio.sleep(FAILED_SECONDS)
            return
        self._used = time.monotonic()
        self._started.set()
        while self._chats or time.monotonic() - self._used < self._config.idle_seconds:
            for chat_id in [i for i, chat in self._chats.items() if chat.abandoned]:
                await self.abort(chat_id)
            await asyncio.sleep(POLL_SECONDS)

    def _forget(self, chat_id: str) -> Chat:
        self._used = time.monotonic()
        return self._chats.pop(chat_id)

    def _free_tokens(self, request: ChatRequest, prompt: int) -> int:
        """Maximum length of a completion, in tokens. Raises `InvalidRequest` if the request exceeds the context."""
        context = self._config.context
        wanted = 1 if request.max_tokens is None else request.max_tokens
        if prompt + wanted > context:
            raise InvalidRequest(
                f"messages: they are {prompt} tokens, and with {wanted} of the completion more than the context of "
                f"{context}: shorten them, or lower max_completion_tokens",
                param="messages",
                code="context_length_exceeded",
            )
        return request.max_tokens or context - prompt


class Chat:
    """One chat, which is generated from the moment of its construction."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        request: ChatRequest,
        prompt: npt.NDArray[np.int32],
        max_tokens: int,
        broken: asyncio.Event,
    ) -> None:
        """`broken` is set when the engine turns out to have failed."""
        self._engine = engine
        self._request = request
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._broken = broken
        self._texts = [TextStream(tokenizer, request.stop) for _ in range(request.n)]
        self._reasons: list[Literal["stop", "length"] | None] = [None] * request.n
        self._reported: set[int] = set()
        """Completions whose end was returned by `read`."""
        self._sampled = 0
        self._changed = asyncio.Event()
        self._read_at = time.monotonic()
        self._task = asyncio.ensure_future(all_or_none(self._complete(choice) for choice in range(request.n)))
        self._task.add_done_callback(lambda _: self._changed.set())

    @property
    def abandoned(self) -> bool:
        """Whether the chat was not read for too long."""
        return time.monotonic() - self._read_at > ABANDONED_SECONDS

    async def read(self) -> ChatProgress:
        """See `ChatServer.read`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), READ_SECONDS)
        self._changed.clear()
        self._read_at = time.monotonic()
        ended = self._task.done()
        if ended:
            self._raise_failure()
        parts = [part for choice in range(self._request.n) if (part := self._part(choice))]
        return ChatProgress(tuple(parts), self._sampled, ended)

    async def abort(self) -> None:
        """End its requests to the engine; a later `read` raises `Unavailable`."""
        await cancel([self._task])

    async def _complete(self, choice: int) -> None:
        text = self._texts[choice]

        def on_tokens(ids: Sequence[int], logprobs: Sequence[float]) -> None:
            for token, logprob in zip(ids, logprobs, strict=True):
                if text.stopped:
                    break
                text.add(token, logprob)
                self._sampled += 1
            if text.stopped:
                generating.cancel()
            self._changed.set()

        generating = asyncio.ensure_future(self._engine.generate(self._prompt, self._sampling(choice), on_tokens))
        try:
            reason = (await generating).finish_reason
        except asyncio.CancelledError:
            if not text.stopped:
                raise
            reason = "stop"
        text.end()
        self._reasons[choice] = "stop" if text.stopped else reason

    def _sampling(self, choice: int) -> SamplingConfig:
        r = self._request
        seed = None if r.seed is None else derived_seed(r.seed, choice)
        return SamplingConfig(
            self._max_tokens, temperature=r.temperature, top_p=r.top_p, seed=seed, json_schema=r.json_schema
        )

    def _part(self, choice: int) -> ChatPart | None:
        """What is new of one completion; its end is returned once."""
        if choice in self._reported:
            return None
        reason = self._reasons[choice]
        text, tokens = self._texts[choice].take(ended=reason is not None)
        if reason is not None:
            self._reported.add(choice)
        return ChatPart(choice, text, tokens, reason) if text or tokens or reason else None

    def _raise_failure(self) -> None:
        """Raises the error that ended the chat before its completions ended, as one of `headrace_core.errors`."""
        if self._task.cancelled():
            raise Unavailable("the chat was aborted: the model's process ends", code="chat_aborted")
        match self._task.exception():
            case None:
                return
            case RequestRefused() as refused:
                raise InvalidRequest(str(refused)) from refused
            case EngineFailure() as failure:
                self._broken.set()
                raise Unavailable(f"the engine failed: {failure}", code="engine_failure") from failure
            case error:
                raise error


def _engine_config(config: ChatConfig) -> EngineConfig:
    return EngineConfig(
        model=Path(config.model_path),
        max_model_len=config.context,
        max_running=MAX_RUNNING,
        threads=config.threads,
        kv_cache_gib=config.kv_cache_gib,
        gpus=config.gpus,
        json_schemas=True,
        seed=int.from_bytes(os.urandom(4)),  # requests without a seed differ from one process to the next
        start_timeout=config.start_timeout,
    )
