"""Renders and tokenizes the prompts of one model's chats, in processes with limited time and memory.

    ChatPrompts.render ──► an idle process, else a new one, up to AT_ONCE ──► token ids
        │                  `python -m headrace_gateway.chat.prompt_renderer`
        └─ beyond its limits: the process is ended, the chat is refused, and the next one gets another process

A chat template is a program by the model's author (see `prompt_tokens`). Invariant: whatever it does with a request,
the chat actor itself holds no more than the token ids of one context, and waits for a limited time; a conversation on
which the template does not terminate delays no other.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE

import msgspec

from headrace_core.errors import HeadraceError, InvalidRequest, Unavailable
from headrace_core.protocols.chat import ChatConfig, ChatPrompt, ChatRequest
from headrace_core.storage.dataset import MAX_BYTES_PER_TOKEN

from ..models.prompt_process import MEMORY_BYTES, OUT_OF_MEMORY
from .json_schema_check import schema_refused
from .prompt_renderer import LENGTH_BYTES, Answer, Question, Start

CPU_SECONDS = 10
"""Processor time for one prompt; one that fills a context of a million tokens takes about 2 s."""
WAIT_SECONDS = 60.0
"""Time limit for an answer, and for an idle process: the machine may be busy with other work."""
AT_ONCE, MAX_WAITING = 2, 256
"""Most prompts that are rendered at the same time, and most that wait: as many as the chats that a model may have."""
_ANSWER_BYTES_A_TOKEN = 16
_MAX_STDERR_BYTES = 64 * 1024
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)


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
            answer = await process.ask(Question(list(request.messages)))
            if request.json_schema is not None:
                await process.ask(Question(json_schema=request.json_schema, completions=request.n))
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
        command = (sys.executable, "-m", "headrace_gateway.chat.prompt_renderer")
        begun = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env)
        process = cls(begun, config)
        try:
            await process.ask(Start(config.model_path, config.context, CPU_SECONDS, MEMORY_BYTES))
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, question: Start | Question) -> Answer:
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

    async def _exchange(self, question: bytes) -> Answer:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None  # both are pipes
        assert out is not None
        self.owes_answer = True
        into.write(len(question).to_bytes(LENGTH_BYTES) + question)
        await into.drain()
        size = int.from_bytes(await out.readexactly(LENGTH_BYTES))
        if size > _MAX_STDERR_BYTES + _ANSWER_BYTES_A_TOKEN * self._config.context:
            raise Unavailable(f"the prompt of {self._config.model} came back as {size} bytes")
        answer = msgspec.json.decode(await out.readexactly(size), type=Answer)
        self.owes_answer = False
        return answer

    async def _end_error(self, question: Start | Question) -> HeadraceError:
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
        if code in _CRASHES and isinstance(question, Question):  # a nesting without end, say
            return self._refused(question, f"ended with signal {-code}", "prompts_too_large")
        return Unavailable(f"the process that renders chats of {self._config.model} ended with {code}: {stderr[-500:]}")

    def _refused(self, question: Start | Question, why: str, code: str) -> InvalidRequest:
        if isinstance(question, Question) and question.json_schema is not None:
            return schema_refused(f"reading it {why}: make it smaller")
        message = (
            f"messages: rendering and counting them {why}: shorten them, or look at the chat template and the "
            f"tokenizer of {self._config.model}"
        )
        return InvalidRequest(message, param="messages", code=code)
