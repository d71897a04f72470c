"""Reads and counts the prompts of an uploaded file in a process with limited time and memory.

    measured ─► `python -m headrace_gateway.models.prompt_process` ─► Prompts     one process per file, AT_ONCE at once
                 in the gateway forked from one that has imported everything: `forked_process`
                 limits itself, streams the file, renders, tokenizes: `prompt_tokens.check_prompts`

Invariant: whatever the file or the model's folder contains (a line of megabytes, an endless chat template, a tokenizer
that needs huge memory), the gateway holds a few hundred bytes of it, and waits for a limited time.
"""

from __future__ import annotations

import os
import resource
import sys
from functools import partial
from pathlib import Path

import msgspec

from headrace_core.errors import InvalidRequest, TimedOut, Unavailable, shortened
from headrace_core.storage.dataset import each_row

from ..limited_processes.json_process import EndedWithoutAnswer, RunProcess, ask, started
from ..limited_processes.process_slots import ProcessSlots
from .prompt_tokens import Prompts, check_prompts

MEMORY_BYTES = 2 * 1024**3
"""Address space of the process; a tokenizer with 250,000 tokens takes a quarter of it."""
SECONDS = 100.0
AT_ONCE = 2
"""Processes of one gateway at the same time; others wait, for as long as one may take."""
THREADS = 4
ENVIRONMENT = {
    "RAYON_NUM_THREADS": str(min(THREADS, os.cpu_count() or 1)),
    "MALLOC_ARENA_MAX": "2",
}
"""Environment of the process: few threads and arenas, because its address space is limited."""
_started_within_limits = partial(started, env=ENVIRONMENT)
OUT_OF_MEMORY = ("MemoryError", "memory allocation of", "capacity overflow", "Cannot allocate memory")


class _Question(msgspec.Struct):
    model: str
    path: str
    name: str
    sha256: str | None
    room: int
    vocabulary: int | None
    memory: int
    """Bytes."""


class Problem(msgspec.Struct):
    """An `InvalidRequest` in a message between processes."""

    message: str
    param: str | None
    code: str

    @classmethod
    def of(cls, error: InvalidRequest) -> Problem:
        """The problem of an error. A long message is reduced to its beginning and end: a template may raise any
        text."""
        return cls(shortened(error.message), error.param, error.code)

    def error(self) -> InvalidRequest:
        return InvalidRequest(self.message, param=self.param, code=self.code)


class _Answer(msgspec.Struct):
    prompts: Prompts | None = None
    problem: Problem | None = None


class PromptChecks:
    """Runs the processes in which one gateway checks prompts."""

    def __init__(self, run: RunProcess = _started_within_limits) -> None:
        """`run` must start processes with `ENVIRONMENT`."""
        self._run = run
        busy = f"the prompts of {AT_ONCE} other files are being checked"
        self._slots = ProcessSlots(AT_ONCE, SECONDS, busy, Unavailable)

    async def measured(
        self, model: Path, path: Path, name: str, sha256: str | None, room: int, vocabulary: int | None
    ) -> Prompts:
        """`prompt_tokens.check_prompts` of the file `path`. Raises `InvalidRequest`, also beyond the limits, and
        `Unavailable` if no slot becomes free in time."""
        question = _Question(str(model), str(path), name, sha256, room, vocabulary, MEMORY_BYTES)
        async with self._slots.slot():
            return await _asked(question, self._run)


async def _asked(question: _Question, run: RunProcess) -> Prompts:
    what = f"rendering and counting the prompts of {question.name}"
    remedy = f"look at the chat template and the tokenizer of {question.model}, or split long rows"
    try:
        answer = await ask(
            "headrace_gateway.models.prompt_process", question, _Answer, seconds=SECONDS, what=what, run=run
        )
    except TimedOut as error:
        raise InvalidRequest(f"{error.message}: {remedy}", code="prompts_too_slow") from error
    except EndedWithoutAnswer as error:
        if not any(sign in error.stderr for sign in OUT_OF_MEMORY):
            raise
        message = f"{what} needs more than {question.memory / 1024**3:.3g} GiB of memory: {remedy}"
        raise InvalidRequest(message, code="prompts_too_large") from error
    if answer.problem is not None:
        raise answer.problem.error()
    assert answer.prompts is not None  # one of the two
    return answer.prompts


def main() -> None:
    """Answer the question on stdin; the answer goes to stdout."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=_Question)
    resource.setrlimit(resource.RLIMIT_AS, (question.memory, question.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) * THREADS, int(SECONDS) * THREADS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        rows = each_row(Path(question.path), question.name, question.sha256)
        answer = _Answer(check_prompts(Path(question.model), rows, question.name, question.room, question.vocabulary))
    except InvalidRequest as error:
        answer = _Answer(problem=Problem.of(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
