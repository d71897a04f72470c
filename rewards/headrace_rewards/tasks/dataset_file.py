"""`python -m headrace_rewards tasks`: the rows of a reference, as a file. JSON in on stdin, JSON out on stdout.

    stdin  headrace_core.protocols.grader_check.RowsRequest      stdout  RowsReport

The same reference gives the same bytes: some tasks go through sets of strings, so strings are hashed without a secret.
The library runs held as a user's function is (see `sandbox`), since its parameters are a user's: `data_file=/…`,
`max_digits=1000000000`. It writes to the file that was opened for it, and to no other; parameters that name files are
refused. How long it may take is for its caller to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import msgspec

from headrace_core.config.reward_permissions import SandboxLevel
from headrace_core.errors import HeadraceError, InvalidRequest
from headrace_core.protocols.grader_check import RequestProblem, RowsReport, RowsRequest

from ..sandbox import contained, frames
from ..sandbox.host_process import environment
from ..sandbox.kernel.resource_limits import ResourceLimits
from ..sandbox.level_probe import probe_level
from .file_names import refuse_file_parameters, refuse_places
from .task_reference import TaskReference
from .verifiers_modules import module_of

MEMORY_BYTES = 4 << 30
_SECONDS = 600.0
"""Processor time is given for; the caller's limit ends it sooner."""
_MAKERS = {"reasoning_gym": "gym_dataset", "verifiers": "verifiers_dataset"}


def main() -> None:
    """Answer the request; a fault of the user's is in the report, a fault of ours is raised."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-P", "-B", "-m", "headrace_rewards", "tasks"]
        os.execve(sys.executable, command, _environment())
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=RowsRequest)
    try:
        report = _made(request)
    except HeadraceError as fault:
        report = _failed(fault)
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _environment() -> dict[str, str]:
    """Nothing of the service's but where modules, and what is hidden, are found."""
    env = environment(Path(tempfile.gettempdir())) | {"HOME": os.path.expanduser("~"), "PYTHONHASHSEED": "0"}
    return env | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


def _made(request: RowsRequest) -> RowsReport:
    reference = TaskReference.parse(request.reference)
    refuse_places(reference.parameters, request.reference)
    if reference.library == "reasoning_gym":
        refuse_file_parameters(reference.parameters, request.reference)
    machine = asyncio.run(probe_level())
    machine.require(request.rules.sandbox)
    with open(request.path, "w", encoding="utf-8") as file:
        setup = _setup(reference, request, machine.level)
        try:
            said = contained.run(setup, lambda: msgspec.json.encode(_work(reference, file, request.max_bytes)))
        except contained.ContainedEnd as end:
            raise InvalidRequest(f"{request.reference}: no rows were made: {end}") from None
    return msgspec.json.decode(said, type=RowsReport)


def _setup(reference: TaskReference, request: RowsRequest, level: SandboxLevel) -> frames.Setup:
    beside = str(module_of(reference.task)) if reference.library == "verifiers" else None
    limits = ResourceLimits(
        start_seconds=_SECONDS,
        memory_bytes=MEMORY_BYTES,
        file_bytes=max(ResourceLimits().file_bytes, 2 * request.max_bytes),
    )
    hidden = list(request.rules.hidden)
    setup = frames.Setup("the rows", "", "text", _SECONDS, limits, level, hidden, source="", beside=beside)
    setup.home = os.path.expanduser("~")
    return setup


def _work(reference: TaskReference, file: TextIO, most: int) -> RowsReport:
    """In the held process; the library is imported there alone."""
    try:
        library = import_module(f"headrace_rewards.tasks.{_MAKERS[reference.library]}")
        with contextlib.redirect_stdout(sys.stderr):  # some tasks print
            count = write(file, library.rows(reference), most)
        file.flush()
        return RowsReport(True, rows=count)
    except MemoryError:
        return _failed(InvalidRequest(f"the rows need more than {MEMORY_BYTES >> 30} GiB of memory"))
    except HeadraceError as fault:
        return _failed(fault)


def _failed(fault: HeadraceError) -> RowsReport:
    return RowsReport(False, RequestProblem.of(fault))


def write(file: TextIO, rows: Iterable[dict[str, Any]], most: int) -> int:
    """How many rows were written; raises `InvalidRequest` where they have more than `most` bytes."""
    written = count = 0
    try:
        for row in rows:
            written += file.write(json.dumps(row, default=plain) + "\n")
            if written > most:
                raise InvalidRequest(f"{count + 1} rows are beyond {most} bytes, which a file may have; ask for fewer")
            count += 1
    except OSError as fault:
        if fault.errno != errno.EFBIG:
            raise
        raise InvalidRequest(
            f"{count + 1} rows are beyond {most} bytes, which a file may have; ask for fewer"
        ) from None
    return count


def plain(value: Any) -> Any:
    """What JSON holds in place of a value it does not know: numpy's scalars as numbers, fractions as text."""
    return value.item() if hasattr(value, "item") else str(value)
