"""The Ray actors that run chat models, one per model: how they are found, called and ended.

The actor class is thin, so that neither the gateway nor Ray imports an engine to send it: the class that does the work
is named as text, and imported in the actor's own process (decision 0007).
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import list_named_actors

from headrace_controller.placement import NAMESPACE
from headrace_core.errors import HeadraceError, Unavailable
from headrace_core.logs import redact_streams
from headrace_core.protocols.chat import ChatBegun, ChatConfig, ChatFacts, ChatProgress, ChatRequest

from .chat_prompts import ChatPrompts

T = TypeVar("T")

CHAT = "headrace_rollout.chat.server:ChatServer"
PREFIX = "chat-"
"""Prefix of all actors' names."""
ANSWER_SECONDS = 10.0
"""An actor that does not answer within this time, not counting its own waits, counts as busy."""
END_SECONDS = 30.0
"""An actor that has not ended within this time is killed."""
_POLL_SECONDS = 0.1


class ChatActor:
    """See `headrace_rollout.chat.server.ChatServer` for the methods."""

    def __init__(self, config: ChatConfig) -> None:
        redact_streams()
        module, name = CHAT.split(":")
        self._server: Any = getattr(importlib.import_module(module), name)(config)
        self._prompts = ChatPrompts(config)
        self._run_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the model until it is not needed any more, then end the process. A second call returns at once."""
        if self._run_task is None:
            self._run_task = asyncio.ensure_future(self._server.run())
            await asyncio.wait([self._run_task])
            await self._prompts.close()
            ray.actor.exit_actor()

    async def begin(self, request: ChatRequest) -> ChatBegun | None:
        prompt = await self._prompts.render(request)
        begun: ChatBegun | None = await self._server.begin(request, prompt)
        return begun

    async def read(self, chat_id: str) -> ChatProgress:
        progress: ChatProgress = await self._server.read(chat_id)
        return progress

    async def abort(self, chat_id: str) -> None:
        await self._server.abort(chat_id)

    async def end(self, only_idle: bool) -> bool:
        return bool(await self._server.end(only_idle))

    async def facts(self) -> ChatFacts:
        facts: ChatFacts = await self._server.facts()
        return facts


async def actor_names() -> list[str]:
    """Names of all chat actors of the cluster, whichever gateway started them."""
    actors = await asyncio.to_thread(list_named_actors, all_namespaces=True)
    return sorted(a["name"] for a in actors if a["namespace"] == NAMESPACE and a["name"].startswith(PREFIX))


async def await_actor(reference: Awaitable[T], seconds: float) -> T:
    """Wait for an actor's answer. Raises the actor's own `HeadraceError`, `TimeoutError`, `RayActorError` if the actor
    has ended, and `Unavailable` if Ray does not answer."""
    try:
        return await asyncio.wait_for(_resolved(reference), seconds)
    except RayActorError:
        raise
    except RayTaskError as error:
        if isinstance(error.cause, HeadraceError):
            raise error.cause from error
        raise
    except RayError as error:
        raise Unavailable(f"Ray does not answer: {error}") from error


async def _resolved(reference: Awaitable[T]) -> T:
    return await reference


async def get_facts(name: str) -> ChatFacts | None:
    """The facts of an actor; None if it has ended, or does not answer, since it may be loading its libraries."""
    try:
        actor: Any = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        facts: ChatFacts = await await_actor(actor.facts.remote(), ANSWER_SECONDS)
    except (ValueError, RayActorError, TimeoutError):
        return None
    return facts


def describe(facts: ChatFacts | None) -> str:
    if facts is None or not facts.ready:
        return "one that is being loaded" if facts is None else f"{facts.model} (being loaded)"
    return f"{facts.model} ({facts.chats} chats)"


async def end_if_idle(name: str) -> bool:
    """End an actor unless a chat has begun meanwhile; whether it ended."""
    try:
        actor: Any = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        if not await await_actor(actor.end.remote(True), ANSWER_SECONDS):
            return False
    except (ValueError, RayActorError):
        return True
    except TimeoutError:
        return False
    await wait_until_gone([name], time.monotonic() + END_SECONDS)
    return True


async def end(which: Iterable[str]) -> None:
    """End these actors, even with chats in progress; returns when they have ended."""
    which = list(which)
    for name in which:
        try:
            actor: Any = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        except ValueError:  # gone
            continue
        actor.end.remote(False)
    await wait_until_gone(which, time.monotonic() + END_SECONDS)


async def wait_until_gone(which: list[str], deadline: float) -> None:
    """Wait until none of these actors is left. Those left after `END_SECONDS`, or at the deadline, are killed."""
    limit = min(deadline, time.monotonic() + END_SECONDS)
    while left := set(which) & set(await actor_names()):
        if time.monotonic() > limit:
            for name in left:
                try:
                    ray.kill(await asyncio.to_thread(ray.get_actor, name, NAMESPACE))
                except ValueError:  # gone meanwhile
                    continue
            return
        await asyncio.sleep(_POLL_SECONDS)
