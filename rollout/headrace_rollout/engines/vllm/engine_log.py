"""What an engine's processes say while they start and run: passed on line by line, without secrets, and its last error
kept, because what reaches this process as an exception often says only that there was one ("see root cause above").

    engine's processes ── stdout, stderr ──► pipe ──► a thread ──► `redacted` ─┬─► this process' own stdout, stderr
                                                                               └─► the last lines

Started before the engine, whose processes inherit the pipes; after `release` this process writes past them again, and
the threads end with the last process that has one.
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
"""Bytes that are read at a time, and of a line that does not end."""
_ENDS = re.compile(rb"(?<=[\n\r])")
"""Of lines; progress bars end theirs with a carriage return."""
_LONGEST = 500
_ERROR = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): (.+)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SAYS_NOTHING = ("Engine core initialization failed", "WorkerProc initialization failed", "root cause")


class EngineLog:
    """See the module's picture. Made in the process that starts the engine."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._own: dict[int, int] = {}
        """What stdout and stderr were, by descriptor."""
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            self._own[descriptor] = os.dup(descriptor)
            read, write = os.pipe()
            os.dup2(write, descriptor)
            os.close(write)
            onward = os.dup(self._own[descriptor])
            threading.Thread(target=self._pass_on, args=(read, onward), name="engine-log", daemon=True).start()

    def release(self) -> None:
        """This process' own words go past the pipes again. Idempotent."""
        for descriptor, own in self._own.items():
            (sys.stdout if descriptor == 1 else sys.stderr).flush()
            os.dup2(own, descriptor)
            os.close(own)
        self._own.clear()

    @property
    def last_error(self) -> str | None:
        """`RuntimeError: why`, the last of its kind that says something."""
        for line in reversed(self._lines):
            found = _ERROR.search(line)
            if found is not None and not any(words in found[2] for words in _SAYS_NOTHING):
                return f"{found[1]}: {found[2].strip()}"[:_LONGEST]
        return None

    def _pass_on(self, read: int, onward: int) -> None:
        rest = b""
        with os.fdopen(read, "rb", buffering=0) as pipe, os.fdopen(onward, "wb", buffering=0) as out:
            while said := pipe.read(_PART):
                *lines, rest = _ENDS.split(rest + said)
                if len(rest) > _PART:  # a line without end is not waited for
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._pass(line, out)
            self._pass(rest, out)

    def _pass(self, line: bytes, out: FileIO) -> None:
        text = redacted(line.decode(errors="surrogateescape"))
        with suppress(OSError):  # nobody listens any more; the engine is not to stand still for it
            out.write(text.encode(errors="surrogateescape"))
        if text.strip():
            self._lines.append(_COLOURS.sub("", text.rstrip().encode(errors="replace").decode()))
