"""The prompts of one model's chats, rendered in processes with limits on their time and memory.

    ChatPrompts.made ──► a process that is free, else one more, up to AT_ONCE ──► token ids
        │                `python -m headrace_gateway.chat.chat_prompts`: holds the template and the tokenizer, a
        question
        │                at a time, and a limit on the processor time of each
        └─ beyond its limits: the process is ended, the chat is refused, and the next one gets another process

A chat template is a program of the model's author (see `prompts`). Invariant: whatever it does with whatever is asked,
the process that chats holds no more than the token ids of one context, and waits a limited time; one conversation on
which a template does not end holds up no other.
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
"""Of the processor, for one prompt; the longest that a context of a million tokens holds takes about two."""
LOAD_SECONDS = 60
"""Of the processor, until template and tokenizer are loaded."""
WAIT_SECONDS = 60.0
"""For an answer, and for a process that is free: the machine may be busy with other work."""
AT_ONCE, MOST_WAITING = 2, 256
"""Chats whose prompts are made, and that wait for that: as many as may be under way with the model."""
_LENGTH_BYTES = 4
_ANSWER_BYTES_A_TOKEN = 16
_MOST_SAID = 64 * 1024
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


class _Answer(msgspec.Struct):
    ids: list[int] = []
    problem: Problem | None = None


class ChatPrompts:
    """Turns the messages of chats with one model into token ids."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._places = asyncio.Semaphore(AT_ONCE)
        self._free: list[_Process] = []
        self._waiting = 0
        self._closed = False

    async def made(self, request: ChatRequest) -> ChatPrompt:
        """What the model is to go on from. Raises `InvalidRequest`, also for what is beyond the limits, and
        `Unavailable` where no process was free in time."""
        self._check_bytes(request)
        if self._waiting >= MOST_WAITING:
            raise self._busy(f"{MOST_WAITING} other chats with {self._config.model} wait for their prompts")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError as error:
            busy = f"the prompts of {AT_ONCE} other chats with {self._config.model} are being made"
            raise self._busy(busy) from error
        finally:
            self._waiting -= 1
        try:
            return await self._made(request)
        finally:
            self._places.release()

    def _busy(self, why: str) -> Unavailable:
        return Unavailable(f"{why}: ask again", code="model_busy", retry_after=1)

    async def close(self) -> None:
        """End the processes that are free; one that is busy ends with its question."""
        self._closed = True
        while self._free:
            await self._free.pop().end()

    async def _made(self, request: ChatRequest) -> ChatPrompt:
        process = await self._process()
        try:
            answer = await process.asked(_Question(list(request.messages)))
            if request.json_schema is not None:
                await process.asked(_Question(json_schema=request.json_schema))
        except BaseException:
            await self._take_back(process)
            raise
        await self._take_back(process)
        return ChatPrompt(token_ids=tuple(answer.ids))

    async def _take_back(self, process: _Process) -> None:
        """For the next chat, unless an answer of it is still to come, which would be taken for that chat's."""
        if process.owes_answer or self._closed:
            await process.end()
        else:
            self._free.append(process)

    async def _process(self) -> _Process:
        while self._free:
            process = self._free.pop()
            if process.lives:
                return process
            await process.end()
        return await _Process.started(self._config)

    def _check_bytes(self, request: ChatRequest) -> None:
        """Before it is rendered and tokenised, which takes 200 times as much memory."""
        context = self._config.context
        size = sum(len(message["content"].encode(errors="replace")) for message in request.messages)
        if size > MAX_BYTES_PER_TOKEN * context:
            raise InvalidRequest(
                f"messages: they are {size} bytes, more than the context of {context} tokens can hold: shorten them",
                param="messages",
                code="context_length_exceeded",
            )


class _Process:
    """One, which answers a question at a time."""

    def __init__(self, process: asyncio.subprocess.Process, config: ChatConfig) -> None:
        self._process = process
        self._config = config
        self.owes_answer = False
        """Whether it was asked what it has not answered, or never will."""
        self._said = bytearray()
        self._listening = asyncio.create_task(self._listen(), name="listen to a process that renders")

    @classmethod
    async def started(cls, config: ChatConfig) -> _Process:
        """Raises `InvalidRequest` for a model whose template or tokenizer cannot be loaded."""
        env = {**os.environ, "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # threads have stacks and arenas
        command = (sys.executable, "-m", "headrace_gateway.chat.chat_prompts")
        begun = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env)
        process = cls(begun, config)
        try:
            await process.asked(_Start(config.model_path, config.context, CPU_SECONDS, MEMORY_BYTES))
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    async def asked(self, question: _Start | _Question) -> _Answer:
        """Raises `InvalidRequest`, also for what took too long or too much memory, and `Unavailable`."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                answer = await self._exchanged(msgspec.json.encode(question))
        except TimeoutError as error:
            raise self._refused(question, f"took longer than {WAIT_SECONDS:.0f} s", "prompts_too_slow") from error
        except (EOFError, ConnectionError) as error:
            raise await self._end_of(question) from error
        if answer.problem is not None:
            raise answer.problem.error()
        return answer

    async def end(self) -> None:
        """End the process, whatever it is doing."""
        if self.lives:
            self._process.kill()
        await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        """Keep the end of its error stream, which would else be full one day, and the process wait for ever."""
        errors = self._process.stderr
        assert errors is not None  # a pipe
        while said := await errors.read(_MOST_SAID):
            self._said = (self._said + said)[-_MOST_SAID:]

    async def _exchanged(self, question: bytes) -> _Answer:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None  # both are pipes
        assert out is not None
        self.owes_answer = True
        into.write(len(question).to_bytes(_LENGTH_BYTES) + question)
        await into.drain()
        size = int.from_bytes(await out.readexactly(_LENGTH_BYTES))
        if size > _MOST_SAID + _ANSWER_BYTES_A_TOKEN * self._config.context:
            raise Unavailable(f"the prompt of {self._config.model} came back as {size} bytes")
        answer = msgspec.json.decode(await out.readexactly(size), type=_Answer)
        self.owes_answer = False
        return answer

    async def _end_of(self, question: _Start | _Question) -> HeadraceError:
        """Why it ended without an answer."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                code = await self._process.wait()
                await asyncio.shield(self._listening)
        except TimeoutError:
            return Unavailable(f"the process that renders chats of {self._config.model} closed its output, and runs on")
        said = self._said.decode(errors="replace")
        if code == -signal.SIGXCPU:
            return self._refused(question, f"took longer than {CPU_SECONDS} s", "prompts_too_slow")
        if any(sign in said for sign in OUT_OF_MEMORY):
            most = f"{MEMORY_BYTES / 1024**3:.3g} GiB"
            return self._refused(question, f"needs more than {most} of memory", "prompts_too_large")
        if code in _CRASHES and isinstance(question, _Question):  # a nesting without end, say
            return self._refused(question, f"ended with signal {-code}", "prompts_too_large")
        return Unavailable(f"the process that renders chats of {self._config.model} ended with {code}: {said[-500:]}")

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
    """Questions on standard input, until it ends; answers on standard output."""
    start = msgspec.json.decode(_read(), type=_Start)
    resource.setrlimit(resource.RLIMIT_AS, (start.memory, start.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _allow(LOAD_SECONDS)
    try:
        counter = PromptCounter(Path(start.model))
    except InvalidRequest as error:
        _write(_Answer(problem=Problem.of(error)))
        return
    _write(_Answer())
    schemas: JsonSchemaCheck | None = None
    while question := _read():
        _allow(start.cpu_seconds)
        asked = msgspec.json.decode(question, type=_Question)
        try:
            if asked.messages is not None:
                _write(_Answer(_ids(counter, asked.messages, start)))
            if asked.json_schema is not None:
                schemas = schemas or JsonSchemaCheck(counter.tokenizer_json())
                schemas.check(asked.json_schema)
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


def _allow(seconds: int) -> None:
    """So much more of the processor; the kernel ends a process that takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _read() -> bytes:
    """The next question; nothing at the end of them."""
    return sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(_LENGTH_BYTES)))


def _write(answer: _Answer) -> None:
    encoded = msgspec.json.encode(answer)
    sys.stdout.buffer.write(len(encoded).to_bytes(_LENGTH_BYTES) + encoded)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
