"""The output of vLLM's processes: passed on line by line, with secrets redacted, and searched for the last error.

The last error is needed because the exception that reaches this process often says only that there was an error ("see
root cause above").

    engine's processes ── stdout, stderr ──► pipe ──► a thread ──► `redacted` ─┬─► this process' own stdout, stderr
                                                                               └─► the last lines

It is created before the engine, whose processes inherit the pipes. After `release` this process writes to its own
stdout and stderr directly again; the threads end when the last process with a pipe has ended.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from contextlib import suppress
from io import FileIO

from headrace_core.redaction import redacted

_LINES = 400
_PART = 65_536
"""Bytes read at a time, and the length at which a line without end is split."""
_ENDS = re.compile(rb"(?<=[\n\r])")
"""Line ends; progress bars end their lines with a carriage return."""
_MAX_ERROR_LENGTH = 500
_ERROR = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): (.+)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WITHOUT_CAUSE = ("Engine core initialization failed", "WorkerProc initialization failed", "root cause")


class EngineLog:
    """Redirects this process' stdout and stderr through pipes, for the engine's processes to inherit."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._own: dict[int, int] = {}
        """Duplicates of the original stdout and stderr, by descriptor."""
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            self._own[descriptor] = os.dup(descriptor)
            read, write = os.pipe()
            os.dup2(write, descriptor)
            os.close(write)
            onward = os.dup(self._own[descriptor])
            threading.Thread(target=self._pass_on, args=(read, onward), name="engine-log", daemon=True).start()

    def release(self) -> None:
        """Restore this process' own stdout and stderr. Idempotent."""
        for descriptor, own in self._own.items():
            (sys.stdout if descriptor == 1 else sys.stderr).flush()
            os.dup2(own, descriptor)
            os.close(own)
        self._own.clear()

    @property
    def last_error(self) -> str | None:
        """The last error in the output that names a cause, as `RuntimeError: cause`."""
        for line in reversed(tuple(self._lines)):  # a copy: the threads go on appending, which ends an iteration
            match = _ERROR.search(line)
            if match is not None and not any(words in match[2] for words in _WITHOUT_CAUSE):
                return f"{match[1]}: {match[2].strip()}"[:_MAX_ERROR_LENGTH]
        return None

    def _pass_on(self, read: int, onward: int) -> None:
        rest = b""
        with os.fdopen(read, "rb", buffering=0) as pipe, os.fdopen(onward, "wb", buffering=0) as out:
            while data := pipe.read(_PART):
                *lines, rest = _ENDS.split(rest + data)
                if len(rest) > _PART:  # do not wait for the end of a very long line
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._pass(line, out)
            self._pass(rest, out)

    def _pass(self, line: bytes, out: FileIO) -> None:
        text = redacted(line.decode(errors="surrogateescape"))
        with suppress(OSError):  # the reader is gone; the engine must not block on its output
            out.write(text.encode(errors="surrogateescape"))
        if text.strip():
            self._lines.append(_COLOURS.sub("", text.rstrip().encode(errors="replace").decode()))
