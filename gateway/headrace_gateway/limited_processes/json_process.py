"""Asks another process a question: JSON on its stdin, JSON on its stdout, one process per question.

    ask ─► run ─┬─ `started`: a new interpreter, which imports first        the command line, doctor
                └─ `ForkServer.run`: forked from one that has imported      the gateway (`forked_process`)

So the gateway never imports the libraries of graders and tasks. The process ends with its answer, or at a time limit.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from headrace_core.config.reward_permissions import SandboxLevel
from headrace_core.errors import TimedOut, Unavailable

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """The result of a process."""

    status: int
    """Exit status; negative for a signal."""
    out: bytes
    """What the process wrote to stdout."""
    stderr: bytes


class RunProcess(Protocol):
    """Runs a process: a new interpreter, or a forked one."""

    async def __call__(self, command: str, question: bytes) -> ProcessResult:
        """Run `python -m <command>` with the question on stdin until it ends. If this is cancelled, the process is
        killed."""
        ...


class EndedWithoutAnswer(Unavailable):
    """The process ended without a valid answer on stdout."""

    def __init__(self, message: str, stderr: str) -> None:
        """`stderr`: the end of the process's stderr."""
        super().__init__(message)
        self.stderr = stderr


async def started(command: str, question: bytes, env: Mapping[str, str] | None = None) -> ProcessResult:
    """A `RunProcess` that starts a new interpreter. `env`: added to this process's environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command.split()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=None if env is None else {**os.environ, **env},
    )
    try:
        out, stderr = await process.communicate(question)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None  # it has closed its output, and was waited for
    return ProcessResult(process.returncode, out, stderr)


async def ask(
    command: str,
    question: object,
    answer: type[Answer],
    *,
    seconds: float,
    what: str,
    param: str | None = None,
    run: RunProcess = started,
) -> Answer:
    """The answer of `python -m <command>`. `what` describes the work, for error messages. Raises `TimedOut`, and
    `EndedWithoutAnswer`."""
    try:
        async with asyncio.timeout(seconds):
            ended = await run(command, msgspec.json.encode(question))
    except TimeoutError as error:
        raise TimedOut(f"{what} took longer than {seconds:.0f} s", param=param) from error
    try:
        return msgspec.json.decode(ended.out, type=answer)
    except ValueError as error:
        stderr = ended.stderr.decode(errors="replace")[-500:]
        raise EndedWithoutAnswer(f"{what} ended with {ended.status}: {stderr}", stderr) from error


async def ask_rewards(
    command: str,
    question: object,
    answer: type[Answer],
    *,
    seconds: float,
    what: str,
    param: str,
    run: RunProcess = started,
) -> Answer:
    """The answer of the rewards service to `command`; see `ask`."""
    return await ask(f"headrace_rewards {command}", question, answer, seconds=seconds, what=what, param=param, run=run)


async def sandbox(wanted: SandboxLevel) -> str:
    """A text on the sandbox level that this machine supports, and why no stricter one; or that reward code is refused,
    because the level is below `wanted`."""
    what = "the trial of the sandbox"
    return await ask_rewards("sandbox", wanted, str, seconds=60.0, what=what, param="reward_sandbox")


async def claim_control_groups() -> None:
    """Let the kernel limit the memory of reward code, if this service has control groups of its own."""
    what = "claiming control groups"
    await ask_rewards("control-groups", None, str, seconds=60.0, what=what, param="reward_sandbox")
