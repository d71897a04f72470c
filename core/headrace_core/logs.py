"""Logging of every process: how a line is rendered, and what it never contains.

    get_logger(…).error(…) ──► level, time, traceback without the values of variables ──► a line ─┐
    vLLM, Ray, uvicorn, transformers, … ──► `logging` ──► a record, whichever its handler ────────┼─► `redacted`
    print, warnings, uncaught errors ──► stdout, stderr (`redact_streams`) ───────────────────────┘

Invariant: no line contains an API key, a bearer token, a session's token, a password of an address, or another secret
that the process was given (see `redaction`), whether in a message, a field or the text of an exception. A traceback
names places in the code, never values of variables.

Importing this module configures structlog and `logging`, so that no process can forget to; a test checks that nothing
logs past it. stdout and stderr are redacted only by the processes that call `redact_streams` (services and workers),
because the command line must be able to show its user a new key.
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
    """A structlog logger for the module `name`."""
    return structlog.get_logger(name)


def log_libraries(level: int = logging.WARNING) -> None:
    """Send what libraries log through `logging`, from `level` up, to stderr; replaces the root logger's handlers."""
    form = "%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    logging.basicConfig(level=level, handlers=[logging.StreamHandler()], format=form, force=True)


def redact_streams() -> None:
    """Redact all text that this process writes to stdout and stderr. Idempotent."""
    sys.stdout, sys.stderr = _redacting(sys.stdout), _redacting(sys.stderr)


def _redacting(stream: TextIO | None) -> TextIO:
    """`stream`, wrapped unless it already is. `None` stays `None`: a process may lack the stream."""
    unchanged = stream is None or isinstance(stream, _RedactingStream)
    return cast("TextIO", stream if unchanged else _RedactingStream(cast("TextIO", stream)))


class _RedactingStream:
    """A text stream that redacts what is written, and forwards everything else to the wrapped stream."""

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
    """Redact every `logging` record when it is made, so that a library's own handlers and formatters cannot matter."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def redacting(*arguments: Any, **named: Any) -> logging.LogRecord:
        return _redacted_record(make(*arguments, **named))

    redacting.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacting)


def _redacted_record(record: logging.LogRecord) -> logging.LogRecord:
    """The record, modified only where it contains a secret: handlers may use its arguments, or the exception."""
    try:
        message = record.getMessage()
    except Exception:  # the arguments do not fit the format: `logging` itself reports that on stderr
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
    assert isinstance(line, str)  # the renderer is the processor before this one
    return redacted(line)


def _configure() -> None:
    """structlog's default rendering with plain tracebacks: the default ones show values of variables where `rich` is
    installed."""
    *before, _ = structlog.get_config()["processors"]
    colored = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(colors=colored, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, renderer, _redact_line])
    _redact_records()


_configure()
