"""The process that renders and tokenizes the chats of one model: `python -m headrace_gateway.chat.prompt_renderer`.

    stdin   a `Start`, then one `Question` at a time     each message: its length in LENGTH_BYTES, then JSON
    stdout  an `Answer` to each

It loads the template and the tokenizer once, and limits itself: its memory, and the processor time of each question,
beyond which the kernel ends it. `chat_prompts` starts it.
"""

from __future__ import annotations

import math
import resource
import sys
from pathlib import Path

import msgspec

from headrace_core.errors import InvalidRequest

from ..models.prompt_process import Problem
from ..models.prompt_tokens import PromptCounter, PromptRefused
from .json_schema_check import JsonSchemaCheck

LOAD_SECONDS = 60
"""Processor time for loading the template and the tokenizer."""
LENGTH_BYTES = 4


class Start(msgspec.Struct):
    """The first message: which model, and the limits."""

    model: str
    context: int
    """Most tokens of a prompt."""
    cpu_seconds: int
    """Processor time for one question."""
    memory: int
    """Bytes of address space."""


class Question(msgspec.Struct):
    """Messages to render, or a JSON schema to check."""

    messages: list[dict[str, str]] | None = None
    json_schema: str | None = None
    completions: int = 1
    """That are to follow the schema."""


class Answer(msgspec.Struct):
    """Token ids of the messages, or why there are none."""

    ids: list[int] = []
    problem: Problem | None = None


def main() -> None:
    """Answer the questions on stdin until it is closed; the answers go to stdout."""
    start = msgspec.json.decode(_read(), type=Start)
    resource.setrlimit(resource.RLIMIT_AS, (start.memory, start.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _add_cpu_time(LOAD_SECONDS)
    try:
        counter = PromptCounter(Path(start.model))
    except InvalidRequest as error:
        _write(Answer(problem=Problem.of(error)))
        return
    _write(Answer())
    schemas: JsonSchemaCheck | None = None
    while question := _read():
        _add_cpu_time(start.cpu_seconds)
        request = msgspec.json.decode(question, type=Question)
        try:
            if request.messages is not None:
                _write(Answer(_ids(counter, request.messages, start)))
            if request.json_schema is not None:
                schemas = schemas or JsonSchemaCheck(counter.tokenizer_json())
                schemas.check(request.json_schema, request.completions)
                _write(Answer())
        except InvalidRequest as error:
            _write(Answer(problem=Problem.of(error)))


def _ids(counter: PromptCounter, messages: list[dict[str, str]], start: Start) -> list[int]:
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
    return sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(LENGTH_BYTES)))


def _write(answer: Answer) -> None:
    encoded = msgspec.json.encode(answer)
    sys.stdout.buffer.write(len(encoded).to_bytes(LENGTH_BYTES) + encoded)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
