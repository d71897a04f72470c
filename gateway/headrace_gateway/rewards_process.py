"""A question to the rewards service: `python -m headrace_rewards <command>`, JSON in, JSON out, a process a question.

The gateway never imports what graders and tasks import; the process ends with its answer, or with its time.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TypeVar

import msgspec

from headrace_core.errors import TimedOut, Unavailable
from headrace_core.reward_rules import SandboxLevel

Answer = TypeVar("Answer")


async def ask(command: str, question: object, answer: type[Answer], *, seconds: float, what: str, param: str) -> Answer:
    """The answer. Raises `TimedOut`, and `Unavailable` where the process ends without one; `what` says what it does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace_rewards", command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
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
        raise Unavailable(f"{what} ended with {process.returncode}: {said}") from error


async def sandbox(wanted: SandboxLevel) -> str:
    """At which level this machine holds reward code, and why at no higher one; or that it is refused below `wanted`."""
    what = "the trial of the sandbox"
    return await ask("sandbox", wanted, str, seconds=60.0, what=what, param="reward_sandbox")
