"""Renders and tokenizes the prompts of one model's chats, in processes with limited time and memory.

    ChatPrompts.render ──► an idle process, else a new one, up to AT_ONCE ──► token ids
        │                `python -m headrace_gateway.chat.chat_prompts`: holds the template and the tokenizer, a
        question
        │                at a time, and a limit on the processor time of each
        └─ beyond its limits: the process is ended, the chat is refused, and the next one gets another process

A chat template is a program by the model's author (see `prompt_tokens`). Invariant: whatever it does with a request,
the chat actor itself holds no more than the token ids of one context, and waits for a limited time; a conversation on
which the template does not terminate delays no other.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import msgspec

from headrace_core.errors import HeadraceError, InvalidRequest, Unavailable
from headrace_core.protocols.chat import ChatConfig, ChatPrompt, ChatRequest
from headrace_core.storage.dataset import MAX_BYTES_PER_TOKEN

from ..models.prompt_process import MEMORY_BYTES, OUT_OF_MEMORY, Problem
from ..models.prompt_tokens import PromptCounter, PromptRefused
from .json_schema_check import JsonSchemaCheck, schema_refused

CPU_SECONDS = 10
"""Processor time for one prompt; one that fills a context of a million tokens takes about 2 s."""
LOAD_SECONDS = 60
"""Processor time for loading the template and the tokenizer."""
WAIT_SECONDS = 60.0
"""Time limit for an answer, and for an idle process: the machine may be busy with other work."""
AT_ONCE, MAX_WAITING = 2, 256
"""Most prompts that are rendered at the same time, and most that wait: as many as the chats that a model may have."""
_LENGTH_BYTES = 4
_ANSWER_BYTES_A_TOKEN = 16
_MAX_STDERR_BYTES = 64 * 1024
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)


class _Start(msgspec.Struct):
    model: str
    context: int
    cpu_seconds: int
    memory: int
    """Bytes of address space."""


class _Question(msgspec.Struct):
    messages: list[dict[str, str]] | None = None
    json_schema: str | None = None
    completions: int = 1
    """That are to follow the schema."""


class _Answer(msgspec.Struct):
    ids: list[int] = []
    problem: Problem | None = None


class ChatPrompts:
    """Turns the messages of chats with one model into token ids."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._idle: list[_Process] = []
        self._waiting = 0
        self._closed = False

    async def render(self, request: ChatRequest) -> ChatPrompt:
        """The token ids of a chat's prompt. Raises `InvalidRequest`, also for one beyond the limits, and `Unavailable`
        if no process becomes idle in time."""
        self._check_bytes(request)
        if self._waiting >= MAX_WAITING:
            raise self._busy(f"{MAX_WAITING} other chats with {self._config.model} wait for their prompts")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError as error:
            busy = f"the prompts of {AT_ONCE} other chats with {self._config.model} are being made"
            raise self._busy(busy) from error
        finally:
            self._waiting -= 1
        try:
            return await self._render(request)
        finally:
            self._slots.release()

    def _busy(self, why: str) -> Unavailable:
        return Unavailable(f"{why}: ask again", code="model_busy", retry_after=1)

    async def close(self) -> None:
        """End the idle processes; a busy one ends after its present question."""
        self._closed = True
        while self._idle:
            await self._idle.pop().end()

    async def _render(self, request: ChatRequest) -> ChatPrompt:
        process = await self._process()
        try:
            answer = await process.ask(_Question(list(request.messages)))
            if request.json_schema is not None:
                await process.ask(_Question(json_schema=request.json_schema, completions=request.n))
        except BaseException:
            await self._release(process)
            raise
        await self._release(process)
        return ChatPrompt(token_ids=tuple(answer.ids))

    async def _release(self, process: _Process) -> None:
        """Make the process available for the next chat, unless an answer of it is still due, which would be taken for
        that chat's."""
        if process.owes_answer or self._closed:
            await process.end()
        else:
            self._idle.append(process)

    async def _process(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
            await process.end()
        return await _Process.started(self._config)

    def _check_bytes(self, request: ChatRequest) -> None:
        """Check the size of the text before it is rendered and tokenized, which takes 200 times as much memory."""
        context = self._config.context
        size = sum(len(message["content"].encode(errors="replace")) for message in request.messages)
        if size > MAX_BYTES_PER_TOKEN * context:
            raise InvalidRequest(
                f"messages: they are {size} bytes, more than the context of {context} tokens can hold: shorten them",
                param="messages",
                code="context_length_exceeded",
            )


class _Process:
    """One rendering process, which answers one question at a time."""

    def __init__(self, process: asyncio.subprocess.Process, config: ChatConfig) -> None:
        self._process = process
        self._config = config
        self.owes_answer = False
        """Whether a question has no answer yet."""
        self._stderr = bytearray()
        self._stderr_task = asyncio.create_task(self._read_stderr(), name="listen to a process that renders")

    @classmethod
    async def started(cls, config: ChatConfig) -> _Process:
        """Start a process. Raises `InvalidRequest` if the model's template or tokenizer cannot be loaded."""
        env = {**os.environ, "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # threads have stacks and arenas
        command = (sys.executable, "-m", "headrace_gateway.chat.chat_prompts")
        begun = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env)
        process = cls(begun, config)
        try:
            await process.ask(_Start(config.model_path, config.context, CPU_SECONDS, MEMORY_BYTES))
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, question: _Start | _Question) -> _Answer:
        """Send a question and wait for the answer. Raises `InvalidRequest`, also if it takes too much time or memory,
        and `Unavailable`."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                answer = await self._exchange(msgspec.json.encode(question))
        except TimeoutError as error:
            raise self._refused(question, f"took longer than {WAIT_SECONDS:.0f} s", "prompts_too_slow") from error
        except (EOFError, ConnectionError) as error:
            raise await self._end_error(question) from error
        if answer.problem is not None:
            raise answer.problem.error()
        return answer

    async def end(self) -> None:
        """End the process, whatever it is doing."""
        if self.alive:
            self._process.kill()
        await self._process.wait()
        await self._stderr_task

    async def _read_stderr(self) -> None:
        """Read the process's stderr and keep its end: a full pipe would block the process."""
        errors = self._process.stderr
        assert errors is not None  # a pipe
        while stderr := await errors.read(_MAX_STDERR_BYTES):
            self._stderr = (self._stderr + stderr)[-_MAX_STDERR_BYTES:]

    async def _exchange(self, question: bytes) -> _Answer:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None  # both are pipes
        assert out is not None
        self.owes_answer = True
        into.write(len(question).to_bytes(_LENGTH_BYTES) + question)
        await into.drain()
        size = int.from_bytes(await out.readexactly(_LENGTH_BYTES))
        if size > _MAX_STDERR_BYTES + _ANSWER_BYTES_A_TOKEN * self._config.context:
            raise Unavailable(f"the prompt of {self._config.model} came back as {size} bytes")
        answer = msgspec.json.decode(await out.readexactly(size), type=_Answer)
        self.owes_answer = False
        return answer

    async def _end_error(self, question: _Start | _Question) -> HeadraceError:
        """The error for a process that ended without an answer."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                code = await self._process.wait()
                await asyncio.shield(self._stderr_task)
        except TimeoutError:
            return Unavailable(f"the process that renders chats of {self._config.model} closed its output, and runs on")
        stderr = self._stderr.decode(errors="replace")
        if code == -signal.SIGXCPU:
            return self._refused(question, f"took longer than {CPU_SECONDS} s", "prompts_too_slow")
        if any(sign in stderr for sign in OUT_OF_MEMORY):
            most = f"{MEMORY_BYTES / 1024**3:.3g} GiB"
            return self._refused(question, f"needs more than {most} of memory", "prompts_too_large")
        if code in _CRASHES and isinstance(question, _Question):  # a nesting without end, say
            return self._refused(question, f"ended with signal {-code}", "prompts_too_large")
        return Unavailable(f"the process that renders chats of {self._config.model} ended with {code}: {stderr[-500:]}")

    def _refused(self, question: _Start | _Question, why: str, code: str) -> InvalidRequest:
        if isinstance(question, _Question) and question.json_schema is not None:
            return schema_refused(f"reading it {why}: make it smaller")
        message = (
            f"messages: rendering and counting them {why}: shorten them, or look at the chat template and the "
            f"tokenizer of {self._config.model}"
        )
        return InvalidRequest(message, param="messages", code=code)


# ── in the process ───────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Answer the questions on stdin until it is closed; the answers go to stdout."""
    start = msgspec.json.decode(_read(), type=_Start)
    resource.setrlimit(resource.RLIMIT_AS, (start.memory, start.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _add_cpu_time(LOAD_SECONDS)
    try:
        counter = PromptCounter(Path(start.model))
    except InvalidRequest as error:
        _write(_Answer(problem=Problem.of(error)))
        return
    _write(_Answer())
    schemas: JsonSchemaCheck | None = None
    while question := _read():
        _add_cpu_time(start.cpu_seconds)
        request = msgspec.json.decode(question, type=_Question)
        try:
            if request.messages is not None:
                _write(_Answer(_ids(counter, request.messages, start)))
            if request.json_schema is not None:
                schemas = schemas or JsonSchemaCheck(counter.tokenizer_json())
                schemas.check(request.json_schema, request.completions)
                _write(_Answer())
        except InvalidRequest as error:
            _write(_Answer(problem=Problem.of(error)))


def _ids(counter: PromptCounter, messages: list[dict[str, str]], start: _Start) -> list[int]:
    try:
        ids = counter.ids(messages)
    except PromptRefused as error:
        raise InvalidRequest(f"messages: {error.message}", param="messages") from error
    if not ids:
        raise InvalidRequest("messages: this model's tokenizer makes no tokens of them", param="messages")
    if len(ids) > start.context:
        raise InvalidRequest(
            f"messages: they are {len(ids)} tokens, more than the context of {start.context}: shorten them",
            param="messages",
            code="context_length_exceeded",
        )
    return ids


def _add_cpu_time(seconds: int) -> None:
    """Allow this many more seconds of processor time; beyond them the kernel ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _read() -> bytes:
    """The next question; empty at the end of stdin."""
    return sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(_LENGTH_BYTES)))


def _write(answer: _Answer) -> None:
    encoded = msgspec.json.encode(answer)
    sys.stdout.buffer.write(len(encoded).to_bytes(_LENGTH_BYTES) + encoded)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
