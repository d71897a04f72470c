"""Reads the rows of a job as prompts, within limits on time and memory.

    event loop: checks once a second ◄── the line being read, since when
    thread: file ─► template ─► tokenizer ─► prompts        RLIMIT_DATA: the memory before, plus an allowance

A chat template is a program by the model's author, in a language with loops. The gateway has already rendered the first
rows, in a process with limits; this module protects against all other rows, and against templates that behave
differently the second time. Invariant: a template that does not end, or takes unlimited memory, raises `InvalidData`
with the line, which ends the job.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from headrace_core.errors import InvalidData

from .prompts import Prompt, Tokenizer, read_prompts

ROW_SECONDS = 60.0
"""Time limit for one row. A row takes milliseconds, or somewhat more on a busy machine."""
ROOM_BYTES = 4 * 1024**3
"""Memory that rendering may take, in addition to the prompts."""
MEMORY_PER_FILE_BYTE = 20
"""Bytes of memory for each byte of the file, because all rows and prompts are kept in memory."""
_POLL_SECONDS = 1.0
_REMEDY = "look at the model's chat template"


async def read_within_limits(path: Path, tokenizer: Tokenizer, longest: int, sha256: str | None) -> list[Prompt]:
    """See `read_prompts`. After a time-out, the daemon thread that reads is left running."""
    reading = _Reading(path, tokenizer, longest, sha256)
    thread = Thread(target=reading.run, name="headrace-read-prompts", daemon=True)
    thread.start()
    read = asyncio.wrap_future(reading.future)
    while not (await asyncio.wait([read], timeout=_POLL_SECONDS))[0]:
        if time.monotonic() - reading.since > ROW_SECONDS:
            where = f"{path.name}, line {reading.line}"
            raise InvalidData(
                f"{where}: the prompt was not rendered within {ROW_SECONDS:.0f} s: {_REMEDY}", code="prompts_too_slow"
            )
    return read.result()


class _Reading:
    """One file being read in a thread."""

    def __init__(self, path: Path, tokenizer: Tokenizer, longest: int, sha256: str | None) -> None:
        self.future: Future[list[Prompt]] = Future()
        self.line, self.since = 0, time.monotonic()
        """The line being read, and since when."""
        self._arguments = path, tokenizer, longest, sha256
        self._memory_limit = ROOM_BYTES + MEMORY_PER_FILE_BYTE * (path.stat().st_size if path.is_file() else 0)

    def run(self) -> None:
        path = self._arguments[0]
        try:
            with _memory(self._memory_limit):
                self.future.set_result(read_prompts(*self._arguments, self._began))
        except MemoryError:
            where = f"{path.name}, line {self.line}"
            limit = f"{self._memory_limit / 1024**3:.3g} GiB"
            self.future.set_exception(
                InvalidData(
                    f"{where}: with this prompt, reading needs more than {limit} of memory: {_REMEDY}",
                    code="prompts_too_large",
                )
            )
        except BaseException as error:  # any error must reach the caller that waits for the future
            self.future.set_exception(error)

    def _began(self, line: int) -> None:
        self.line, self.since = line, time.monotonic()


@contextmanager
def _memory(more: int) -> Iterator[None]:
    """Within, this process may allocate `more` bytes in addition to what it has; the limit before is restored after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    given = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(_data_bytes() + more, *given, sys.maxsize), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """The size that RLIMIT_DATA limits: the process' private writable memory, used or not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
