"""The log of every process: how a line is rendered, and what never stands in one.

    get_logger(…).error(…) ──► level, time, traceback without the values of variables ─┐
    uvicorn and other libraries, by `logging` (`log_libraries`) ───────────────────────┴─► `redacted` ──► a line

Invariant: no line holds an API key, a bearer token, a session's token or a password of an address, whatever held it:
a message, a field, the text of an exception. A traceback names places in the code, and no variable's value.

Importing this module sets structlog up, so that a process cannot log otherwise by forgetting to; a test holds that
nothing logs past it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from .redis_address import masked

_SECRETS = (
    (re.compile(r"\bhr-[A-Za-z0-9_-]{8,}"), "hr-***"),
    (re.compile(r"(?i)\b(bearer)(\s+|%20)[^\s'\",;)\]}]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(headrace_session=)[^\s'\",;)\]}]+"), r"\1***"),
)


def redacted(text: str) -> str:
    """`text` without the secrets in it."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return masked(text)


def get_logger(name: str) -> Any:
    """structlog's logger, for the module `name`."""
    return structlog.get_logger(name)


def log_libraries(level: int = logging.WARNING) -> None:
    """What libraries log by `logging`, from `level` on, goes to the error stream, redacted; other handlers of the root
    logger end."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s [%(levelname)s] %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`: the line, its traceback included."""
        return redacted(super().format(record))


def _redact_line(_: WrappedLogger, __: str, line: str | EventDict) -> str:
    assert isinstance(line, str)  # the renderer came before
    return redacted(line)


def _configure() -> None:
    """structlog's own way to render, but for its tracebacks: those show what variables hold, wherever rich is."""
    *before, _ = structlog.get_config()["processors"]
    colored = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(colors=colored, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, renderer, _redact_line])


_configure()
