"""Starts and finds the chat actors: one named, detached Ray actor for each model in use.

    begin ──► actor of that name? ──yes──► begin there, once its model is loaded
                 │no                          │ it has ended or died: again from the start
                 ▼
              under a lock: fewer than chat_models actors? else end the least recently used idle one; else Unavailable
                 └──► a new actor, which reserves no core: it never queues behind a job

Ray's list of named actors is the only state: the gateway stores none, and any number of gateways share the actors. An
actor ends by itself after some idle time; `stop` ends all of them.
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

from headrace_controller.placement import NAMESPACE, alive_nodes, environment
from headrace_core.config.service_settings import Settings
from headrace_core.errors import TimedOut, Unavailable
from headrace_core.planning.resource_plan import ROLES, TAG
from headrace_core.protocols.chat import ChatBegun, ChatConfig, ChatProgress, ChatRequest
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import acquired

from ..models.catalog import Model
from . import chat_actor
from .chat_actor import ANSWER_SECONDS, END_SECONDS, PREFIX, ChatActor, await_actor

LOCK_SECONDS = 90.0
"""Expiry of the lock: more than a start takes, so that a gateway that died does not block the others for longer."""
RETRY_SECONDS = 5
DEATHS = 2
"""A request gives up after the model's process has died this many times."""


class ChatConnection(Protocol):
    """One chat in progress in a chat actor."""

    @property
    def prompt_tokens(self) -> int: ...

    async def read(self) -> ChatProgress:
        """The progress since the last call; waits for a limited time. Raises the error that ended the chat."""
        ...

    def abort(self) -> None:
        """Abort the chat if it has not ended. Does not wait."""
        ...


class ChatPool(Protocol):
    """What the gateway needs of the chat models."""

    async def begin(self, model: Model, request: ChatRequest) -> ChatConnection:
        """Start a chat. Raises `InvalidRequest` if the model cannot serve the request, `Unavailable` if no actor
        answers."""
        ...

    async def end(self, model: Model) -> None:
        """End the model's actor, with all of its chats."""
        ...

    async def stop(self) -> None:
        """End all actors; returns when no process is left."""
        ...


class RayChatPool:
    """`ChatPool` with actors in the Ray cluster that this process is connected to."""

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
            await chat_actor.wait_until_gone([_actor_name(model)], deadline)

    async def end(self, model: Model) -> None:
        if ray.is_initialized():
            await chat_actor.end([_actor_name(model)])

    async def stop(self) -> None:
        await chat_actor.end(await chat_actor.actor_names())

    async def _begin(self, actor: Any, model: Model, request: ChatRequest, deadline: float) -> ChatBegun | None:
        limit = deadline - time.monotonic()
        try:
            begun: ChatBegun | None = await await_actor(actor.begin.remote(request), limit)
        except TimeoutError as error:
            ray.kill(actor)
            raise TimedOut(
                f"{model.name} was not loaded within {self._settings.start_timeout:.0f} s, or had no place in Ray "
                f"(it asks for {self._gpus()} GPU): its process was ended"
            ) from error
        return begun

    async def _actor(self, model: Model) -> Any:
        name = _actor_name(model)
        try:
            return await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        except ValueError:
            pass
        async with self._placement_lock():
            if name not in await chat_actor.actor_names():
                await self._free_slot()
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
                runtime_env={"env_vars": environment(self._settings.chat_threads, gpus)},
            )
            .remote(self._config(model, gpus))
        )
        actor.run.remote()
        return actor

    def _config(self, model: Model, gpus: float) -> ChatConfig:
        s = self._settings
        engine = s.chat_engine
        return ChatConfig(
            model=model.name,
            model_path=str(model.path),
            engine=engine if engine != "auto" else "vllm" if gpus else "transformers",
            context=min(s.chat_context, model.context or s.chat_context),
            kv_cache_gib=s.chat_kv_cache_gib,
            threads=s.chat_threads,
            gpus=gpus,
            idle_seconds=s.chat_idle_seconds,
            start_timeout=s.start_timeout,
        )

    def _gpus(self) -> float:
        return self._settings.chat_gpus

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _placement_lock(self) -> AsyncIterator[None]:
        """Lets one gateway at a time start actors, so that together they do not exceed the limit."""
        lock = self._redis.lock(keys.CHATS, timeout=LOCK_SECONDS, blocking_timeout=LOCK_SECONDS)
        if not await acquired(lock):
            raise TimedOut(f"other gateways were starting models for {LOCK_SECONDS:.0f} s", retry_after=RETRY_SECONDS)
        try:
            yield
        finally:
            await lock.release()

    async def _free_slot(self) -> None:
        """End idle actors until another may be started. Raises an `Unavailable` that names the actors if all are
        busy."""
        while len(names := await chat_actor.actor_names()) >= self._settings.chat_models:
            all_facts = await asyncio.gather(*(chat_actor.get_facts(name) for name in names))
            facts = dict(zip(names, all_facts, strict=True))
            idle = {name: f.idle_seconds for name, f in facts.items() if f is not None and f.ready and not f.chats}
            for name in sorted(idle, key=lambda n: -idle[n]):
                if await chat_actor.end_if_idle(name):
                    break
            else:
                running = ", ".join(chat_actor.describe(f) for f in facts.values())
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
            progress: ChatProgress = await await_actor(self._actor.read.remote(self._begun.id), 6 * ANSWER_SECONDS)
        except TimeoutError as error:
            message = f"the process of {self._model} did not answer for {6 * ANSWER_SECONDS:.0f} s"
            raise TimedOut(message) from error
        except RayActorError as error:
            raise Unavailable(f"the process of {self._model} ended: ask again, and another is started") from error
        return progress

    def abort(self) -> None:
        self._actor.abort.remote(self._begun.id)


def _actor_name(model: Model) -> str:
    """The actor's name. It derives from the model's folder, so that all names of a model share one actor, and a name
    that is reused for another folder gets another actor."""
    return PREFIX + hashlib.sha256(str(model.path).encode()).hexdigest()[:32]
