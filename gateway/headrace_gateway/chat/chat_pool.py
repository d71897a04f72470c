"""Chats with models: one named, detached Ray actor for each model that is being chatted with.

    begin ──► actor of that name? ──yes──► begin there, once its model is loaded
                 │no                          │ it ends, or died: again
                 ▼                            ▼
              under a lock: fewer than chat_models actors? else the idle one used longest ago ends; else Unavailable
                 └──► a new actor, without a core of its own: it never queues behind a job

Ray's list of named actors is all there is to know: the gateway keeps nothing, and any number of gateways share the
actors. An actor ends by itself when it is idle; `stop` ends all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError
from redis.asyncio import Redis

from headrace_controller.placement import NAMESPACE, ROLES, TAG, alive_nodes, environment
from headrace_core.config.service_settings import Settings
from headrace_core.errors import TimedOut, Unavailable
from headrace_core.protocols.chat import ChatBegun, ChatConfig, ChatProgress, ChatRequest
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import acquired

from ..models.catalog import Model
from . import chat_actor
from .chat_actor import ANSWER_SECONDS, END_SECONDS, PREFIX, ChatActor, asked

LOCK_SECONDS = 90.0
"""More than making room takes; a gateway that died holds up the others no longer."""
RETRY_SECONDS = 5
DEATHS = 2
"""A model whose process died so often during one request is not tried again for it."""


class ChatConnection(Protocol):
    """One chat that a chat actor is answering."""

    @property
    def prompt_tokens(self) -> int: ...

    async def read(self) -> ChatProgress:
        """What came since the last reading; waits for it, but not for ever. Raises what ended the chat."""
        ...

    def abort(self) -> None:
        """End it, if it has not ended; does not wait."""
        ...


class ChatPool(Protocol):
    """What the gateway asks for."""

    async def begin(self, model: Model, request: ChatRequest) -> ChatConnection:
        """Start a chat. Raises `InvalidRequest` for what a model cannot be asked, `Unavailable` where none answers."""
        ...

    async def end(self, model: Model) -> None:
        """Nobody chats with this model any more."""
        ...

    async def stop(self) -> None:
        """End all of them; returns when no process is left."""
        ...


class RayChatPool:
    """Chats by actors of the Ray cluster this process is connected to."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings = settings
        self._redis = redis

    async def begin(self, model: Model, request: ChatRequest) -> ChatConnection:
        if not ray.is_initialized():  # else Ray would start a cluster by itself
            raise Unavailable("this gateway is not connected to Ray, which runs the models")
        deadline = time.monotonic() + self._settings.start_timeout + END_SECONDS
        deaths = 0
        while True:
            actor = await self._actor(model)
            try:
                begun = await self._begin(actor, model, request, deadline)
            except RayActorError as error:
                deaths += 1
                if deaths == DEATHS:
                    message = f"the process of {model.name} died {deaths} times: {error}"
                    raise Unavailable(message, code="model_died") from error
                begun = None
            if begun is not None:
                return _RayChat(actor, begun, model.name)
            await chat_actor.gone([_name(model)], deadline)

    async def end(self, model: Model) -> None:
        if ray.is_initialized():
            await chat_actor.end([_name(model)])

    async def stop(self) -> None:
        await chat_actor.end(await chat_actor.names())

    async def _begin(self, actor: Any, model: Model, request: ChatRequest, deadline: float) -> ChatBegun | None:
        limit = deadline - time.monotonic()
        try:
            begun: ChatBegun | None = await asked(actor.begin.remote(request), limit)
        except TimeoutError as error:
            ray.kill(actor)
            raise TimedOut(
                f"{model.name} was not loaded within {self._settings.start_timeout:.0f} s, or had no place in Ray "
                f"(it asks for {self._gpus()} GPU): its process was ended"
            ) from error
        return begun

    async def _actor(self, model: Model) -> Any:
        name = _name(model)
        try:
            return await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        except ValueError:
            pass
        async with self._placing():
            if name not in await chat_actor.names():
                await self._make_room()
            return await asyncio.to_thread(self._start, name, model)

    def _start(self, name: str, model: Model) -> Any:
        nodes = alive_nodes()
        gpus = self._gpus() if any(node.get("GPU") for node in nodes) else 0.0
        role = ROLES[1] if any(ROLES[1] in node for node in nodes) else None
        actor: Any = (
            ray.remote(ChatActor)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                num_gpus=gpus,
                resources={role: TAG} if role else {},
                max_concurrency=1000,
                runtime_env={"env_vars": environment(self._settings.chat_threads)},
            )
            .remote(self._config(model, gpus))
        )
        actor.run.remote()
        return actor

    def _config(self, model: Model, gpus: float) -> ChatConfig:
        s = self._settings
        asked = s.chat_engine
        return ChatConfig(
            model=model.name,
            model_path=str(model.path),
            engine=asked if asked != "auto" else "vllm" if gpus else "transformers",
            context=min(s.chat_context, model.context or s.chat_context),
            kv_cache_gib=s.chat_kv_cache_gib,
            threads=s.chat_threads,
            idle_seconds=s.chat_idle_seconds,
            start_timeout=s.start_timeout,
        )

    def _gpus(self) -> float:
        return self._settings.chat_gpus

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _placing(self) -> AsyncIterator[None]:
        """One gateway at a time starts actors, so that all of them together start no more than they may."""
        lock = self._redis.lock(keys.CHATS, timeout=LOCK_SECONDS, blocking_timeout=LOCK_SECONDS)
        if not await acquired(lock):
            raise TimedOut(f"other gateways were starting models for {LOCK_SECONDS:.0f} s", retry_after=RETRY_SECONDS)
        try:
            yield
        finally:
            await lock.release()

    async def _make_room(self) -> None:
        """For one more. Raises `Unavailable`, naming what runs, where each is busy."""
        while len(names := await chat_actor.names()) >= self._settings.chat_models:
            asked_all = await asyncio.gather(*(chat_actor.facts_of(name) for name in names))
            facts = dict(zip(names, asked_all, strict=True))
            idle = {name: f.idle_seconds for name, f in facts.items() if f is not None and f.ready and not f.chats}
            for name in sorted(idle, key=lambda n: -idle[n]):
                if await chat_actor.end_if_idle(name):
                    break
            else:
                running = ", ".join(chat_actor.described(f) for f in facts.values())
                raise Unavailable(
                    f"{self._settings.chat_models} models may be chatted with at a time (chat_models), and all are "
                    f"busy: {running}; ask again when one of them is idle",
                    code="chat_models_busy",
                    retry_after=RETRY_SECONDS,
                )


class _RayChat:
    def __init__(self, actor: Any, begun: ChatBegun, model: str) -> None:
        self._actor = actor
        self._begun = begun
        self._model = model

    @property
    def prompt_tokens(self) -> int:
        return self._begun.prompt_tokens

    async def read(self) -> ChatProgress:
        try:
            progress: ChatProgress = await asked(self._actor.read.remote(self._begun.id), 6 * ANSWER_SECONDS)
        except TimeoutError as error:
            message = f"the process of {self._model} did not answer for {6 * ANSWER_SECONDS:.0f} s"
            raise TimedOut(message) from error
        except RayActorError as error:
            raise Unavailable(f"the process of {self._model} ended: ask again, and another is started") from error
        return progress

    def abort(self) -> None:
        self._actor.abort.remote(self._begun.id)


def _name(model: Model) -> str:
    """Of the actor: of the model's folder, so that all names of one model share it, and none outlives its meaning."""
    return PREFIX + hashlib.sha256(str(model.path).encode()).hexdigest()[:32]
