"""A question to another process, the rewards service's above all: JSON in, JSON out, a process a question.

The gateway never imports what graders and tasks import; the process ends with its answer, or with its time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from headrace_core.errors import TimedOut, Unavailable
from headrace_core.reward_rules import SandboxLevel

Answer = TypeVar("Answer")


class EndedWithoutAnswer(Unavailable):
    """The process ended, and what it wrote to standard output is no answer."""

    def __init__(self, message: str, said: str) -> None:
        """`said`: the end of what it wrote to the error stream."""
        super().__init__(message)
        self.said = said


async def ask(
    module: str,
    question: object,
    answer: type[Answer],
    *,
    seconds: float,
    what: str,
    param: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Answer:
    """The answer of `python -m <module>`. Raises `TimedOut`, and `EndedWithoutAnswer`; `what` says what it does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *module.split()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=None if env is None else {**os.environ, **env},
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(msgspec.json.encode(question))
    except TimeoutError as error:
        raise TimedOut(f"{what} took longer than {seconds:.0f} s", param=param) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(out, type=answer)
    except ValueError as error:
        said = err.decode(errors="replace")[-500:]
        raise EndedWithoutAnswer(f"{what} ended with {process.returncode}: {said}", said) from error


async def ask_rewards(
    command: str, question: object, answer: type[Answer], *, seconds: float, what: str, param: str
) -> Answer:
    """The answer of the rewards service to `command`; see `ask`."""
    return await ask(f"headrace_rewards {command}", question, answer, seconds=seconds, what=what, param=param)


async def sandbox(wanted: SandboxLevel) -> str:
    """At which level this machine holds reward code, and why at no higher one; or that it is refused below `wanted`."""
    what = "the trial of the sandbox"
    return await ask_rewards("sandbox", wanted, str, seconds=60.0, what=what, param="reward_sandbox")
