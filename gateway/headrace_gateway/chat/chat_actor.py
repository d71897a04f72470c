"""The Ray actors that chat, one for each model: what they are, and how they are found, asked and ended.

The class is thin, so that neither gateway nor Ray loads an engine to send it: what answers is named here as text and
imported in the actor's own process (decision 0007).
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
"""Of the names of all of them."""
ANSWER_SECONDS = 10.0
"""An actor that does not answer for so long, beyond its own waits, is busy."""
END_SECONDS = 30.0
"""An actor that has not ended by then is killed."""
_LOOK_SECONDS = 0.1


class ChatActor:
    """See `headrace_rollout.chat.server.ChatServer` for the methods."""

    def __init__(self, config: ChatConfig) -> None:
        redact_streams()
        module, name = CHAT.split(":")
        self._server: Any = getattr(importlib.import_module(module), name)(config)
        self._prompts = ChatPrompts(config)
        self._life: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Work until the model is not needed any more, then end the process; a second call returns at once."""
        if self._life is None:
            self._life = asyncio.ensure_future(self._server.run())
            await asyncio.wait([self._life])
            await self._prompts.close()
            ray.actor.exit_actor()

    async def begin(self, request: ChatRequest) -> ChatBegun | None:
        prompt = await self._prompts.made(request)
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


async def names() -> list[str]:
    """Of all actors that chat, whichever gateway started them."""
    found = await asyncio.to_thread(list_named_actors, all_namespaces=True)
    return sorted(a["name"] for a in found if a["namespace"] == NAMESPACE and a["name"].startswith(PREFIX))


async def asked(reference: Awaitable[T], seconds: float) -> T:
    """The answer of an actor. Raises what it raised, `TimeoutError`, `RayActorError` where it is gone."""
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


async def facts_of(name: str) -> ChatFacts | None:
    """None of one that is gone, or does not answer: it may be loading its libraries."""
    try:
        actor: Any = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        facts: ChatFacts = await asked(actor.facts.remote(), ANSWER_SECONDS)
    except (ValueError, RayActorError, TimeoutError):
        return None
    return facts


def described(facts: ChatFacts | None) -> str:
    if facts is None or not facts.ready:
        return "one that is being loaded" if facts is None else f"{facts.model} (being loaded)"
    return f"{facts.model} ({facts.chats} chats)"


async def end_if_idle(name: str) -> bool:
    """Whether it ended: since it was asked how it is, a chat may have begun."""
    try:
        actor: Any = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        if not await asked(actor.end.remote(True), ANSWER_SECONDS):
            return False
    except (ValueError, RayActorError):
        return True
    except TimeoutError:
        return False
    await gone([name], time.monotonic() + END_SECONDS)
    return True


async def end(which: Iterable[str]) -> None:
    """End these actors, chats or not; returns when they are gone."""
    which = list(which)
    for name in which:
        try:
            actor: Any = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        except ValueError:  # gone
            continue
        actor.end.remote(False)
    await gone(which, time.monotonic() + END_SECONDS)


async def gone(which: list[str], deadline: float) -> None:
    """Wait until none of these actors is left; those that are after `END_SECONDS`, or at the deadline, are killed."""
    limit = min(deadline, time.monotonic() + END_SECONDS)
    while left := set(which) & set(await names()):
        if time.monotonic() > limit:
            for name in left:
                try:
                    ray.kill(await asyncio.to_thread(ray.get_actor, name, NAMESPACE))
                except ValueError:  # gone meanwhile
                    continue
            return
        await asyncio.sleep(_LOOK_SECONDS)
