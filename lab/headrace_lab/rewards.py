"""A reward for as long as something asks it: started before, and closed however that ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from headrace_core.protocols.grader_check import Outcome
from headrace_rewards.protocol import Reward, Sample


class Startable(Protocol):
    """A reward, or what it asks a server with."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


T = TypeVar("T", bound=Startable)


@asynccontextmanager
async def started(part: T) -> AsyncIterator[T]:
    """The same, closed at the block's end."""
    await part.start()
    try:
        yield part
    finally:
        await part.close()


async def score_once(reward: Reward, samples: Sequence[Sample]) -> list[Outcome]:
    """The outcomes of one call, for which the reward is started."""
    async with started(reward):
        return await reward.score(samples)
