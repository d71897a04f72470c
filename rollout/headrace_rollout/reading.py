"""The rows of a job read as prompts, within limits on time and memory.

    event loop: looks once a second ◄── the row that is being read, since when
    thread: file ─► template ─► tokenizer ─► prompts        RLIMIT_DATA: what the process had, and some more

A chat template is a program of the model's author, in a language that has loops. The gateway has rendered the first
rows by then, in a process with limits; this holds for all others, and for a template that does not do the same twice.
Invariant: a template without an end, in time or in memory, is an `InvalidData` with its line, which ends the job.
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
"""A row takes milliseconds; on a machine that is busy with other work, some more."""
ROOM_BYTES = 4 * 1024**3
BYTES_A_BYTE = 20
"""Of memory, for each byte of the file: rows and prompts are kept."""
_LOOK_SECONDS = 1.0
_REMEDY = "look at the model's chat template"


async def read_within_limits(path: Path, tokenizer: Tokenizer, longest: int, sha256: str | None) -> list[Prompt]:
    """See `read_prompts`. Where it raises for a row's time, a thread is left that the process does not wait for."""
    reading = _Reading(path, tokenizer, longest, sha256)
    thread = Thread(target=reading.run, name="headrace-read-prompts", daemon=True)
    thread.start()
    read = asyncio.wrap_future(reading.future)
    while not (await asyncio.wait([read], timeout=_LOOK_SECONDS))[0]:
        if time.monotonic() - reading.since > ROW_SECONDS:
            where = f"{path.name}, line {reading.line}"
            raise InvalidData(
                f"{where}: the prompt was not rendered within {ROW_SECONDS:.0f} s: {_REMEDY}", code="prompts_too_slow"
            )
    return read.result()


class _Reading:
    def __init__(self, path: Path, tokenizer: Tokenizer, longest: int, sha256: str | None) -> None:
        self.future: Future[list[Prompt]] = Future()
        self.line, self.since = 0, time.monotonic()
        """The line being read, and since when."""
        self._arguments = path, tokenizer, longest, sha256
        self._memory_limit = ROOM_BYTES + BYTES_A_BYTE * (path.stat().st_size if path.is_file() else 0)

    def run(self) -> None:
        path = self._arguments[0]
        try:
            with _memory(self._memory_limit):
                self.future.set_result(read_prompts(*self._arguments, self._began))
        except MemoryError:
            where = f"{path.name}, line {self.line}"
            most = f"{self._memory_limit / 1024**3:.3g} GiB"
            self.future.set_exception(
                InvalidData(
                    f"{where}: with this prompt, reading needs more than {most} of memory: {_REMEDY}",
                    code="prompts_too_large",
                )
            )
        except BaseException as error:  # whatever it is, whoever waits is told
            self.future.set_exception(error)

    def _began(self, line: int) -> None:
        self.line, self.since = line, time.monotonic()


@contextmanager
def _memory(more: int) -> Iterator[None]:
    """This process may have `more` bytes than it has now; then as many as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    given = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(_data_bytes() + more, *given, sys.maxsize), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: the process's own writable memory, touched or not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
