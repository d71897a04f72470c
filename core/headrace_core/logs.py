"""The log of every process: how a line is rendered, and what never stands in one.

    get_logger(…).error(…) ──► level, time, traceback without the values of variables ──► a line ─┐
    vLLM, Ray, uvicorn, transformers, … ──► `logging` ──► a record, whichever its handler ────────┼─► `redacted`
    print, warnings, errors that nobody caught ──► stdout, stderr (`redact_streams`) ─────────────┘

Invariant: no line holds an API key, a bearer token, a session's token, a password of an address, or another secret that
the process was given (see `redaction`), whatever held it: a message, a field, the text of an exception. A traceback
names places in the code, and no variable's value.

Importing this module sets structlog and `logging` up, so that a process cannot log otherwise by forgetting to; a test
holds that nothing logs past it. The streams are set up by each process that serves or works, since a command line shows
its user a new key.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from .redaction import redacted

_plain = logging.Formatter()


def get_logger(name: str) -> Any:
    """structlog's logger, for the module `name`."""
    return structlog.get_logger(name)


def log_libraries(level: int = logging.WARNING) -> None:
    """What libraries log by `logging`, from `level` on, goes to the error stream; other handlers of the root logger
    end."""
    form = "%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    logging.basicConfig(level=level, handlers=[logging.StreamHandler()], format=form, force=True)


def redact_streams() -> None:
    """What this process writes to stdout and stderr as text is redacted. Idempotent."""
    sys.stdout, sys.stderr = _redacting(sys.stdout), _redacting(sys.stderr)


def _redacting(stream: TextIO | None) -> TextIO:
    """None where a process has no such stream."""
    done = stream is None or isinstance(stream, _RedactingStream)
    return cast("TextIO", stream if done else _RedactingStream(cast("TextIO", stream)))


class _RedactingStream:
    """A text stream: what is written comes out redacted, all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _redact_records() -> None:
    """Every record of `logging` is redacted as it is made: a library's own handlers and formatters do not matter."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def redacting(*arguments: Any, **named: Any) -> logging.LogRecord:
        return _redacted_record(make(*arguments, **named))

    redacting.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacting)


def _redacted_record(record: logging.LogRecord) -> logging.LogRecord:
    """The record itself, changed only where it holds a secret: handlers may want the arguments, or the exception."""
    try:
        message = record.getMessage()
    except Exception:  # arguments that do not fit: `logging` itself tells so, on the error stream, when it renders it
        message = ""
    if (shown := redacted(message)) != message:
        record.msg, record.args = shown, None
    if record.exc_info:
        traceback = _plain.formatException(record.exc_info)
        if (shown := redacted(traceback)) != traceback:
            record.exc_info, record.exc_text = None, shown
    if record.stack_info:
        record.stack_info = redacted(record.stack_info)
    return record


def _redact_line(_: WrappedLogger, __: str, line: str | EventDict) -> str:
    assert isinstance(line, str)  # the renderer came before
    return redacted(line)


def _configure() -> None:
    """structlog's own way to render, but for its tracebacks: those show what variables hold, wherever rich is."""
    *before, _ = structlog.get_config()["processors"]
    colored = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(colors=colored, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, renderer, _redact_line])
    _redact_records()


_configure()
