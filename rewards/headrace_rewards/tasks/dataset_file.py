"""`python -m headrace_rewards tasks`: writes the rows of a reference to a file. JSON on stdin, JSON on stdout.

    stdin  headrace_core.protocols.grader_check.RowsRequest      stdout  RowsReport

The same reference always gives the same bytes. Some tasks iterate over sets of strings, so the process runs with a
fixed `PYTHONHASHSEED`. The library runs in the sandbox like a user's function (see `sandbox`), because its parameters
come from a user: `data_file=/…`, `max_digits=1000000000`. It can write only to the file that was opened for it, and
parameters that name files are rejected. The caller limits its time.
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
from .file_names import reject_file_parameters, reject_paths
from .task_reference import TaskReference
from .verifiers_modules import module_of

MEMORY_BYTES = 4 << 30
_SECONDS = 600.0
"""Limit of processor time; the caller's time limit is shorter."""
_MAKERS = {"reasoning_gym": "gym_dataset", "verifiers": "verifiers_dataset"}


def main() -> None:
    """Answer the request on stdin. A user's error is part of the report; an error of the service is raised."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-P", "-B", "-m", "headrace_rewards", "tasks"]
        os.execve(sys.executable, command, _environment())
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=RowsRequest)
    try:
        report = _make_rows(request)
    except HeadraceError as fault:
        report = _failed(fault)
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _environment() -> dict[str, str]:
    """The process's environment: of the service's variables only those by which modules and hidden paths are found."""
    env = environment(Path(tempfile.gettempdir())) | {"HOME": os.path.expanduser("~"), "PYTHONHASHSEED": "0"}
    return env | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


def _make_rows(request: RowsRequest) -> RowsReport:
    reference = TaskReference.parse(request.reference)
    reject_paths(reference.parameters, request.reference)
    if reference.library == "reasoning_gym":
        reject_file_parameters(reference.parameters, request.reference)
    machine = asyncio.run(probe_level())
    machine.require(request.rules.sandbox)
    with open(request.path, "w", encoding="utf-8") as file:
        setup = _setup(reference, request, machine.level)
        try:
            answer = contained.run(setup, lambda: msgspec.json.encode(_write_rows(reference, file, request.max_bytes)))
        except contained.ContainedEnd as end:
            raise InvalidRequest(f"{request.reference}: no rows were made: {end}") from None
    return msgspec.json.decode(answer, type=RowsReport)


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


def _write_rows(reference: TaskReference, file: TextIO, max_bytes: int) -> RowsReport:
    """Runs in the sandboxed process, the only one that imports the library."""
    try:
        library = import_module(f"headrace_rewards.tasks.{_MAKERS[reference.library]}")
        with contextlib.redirect_stdout(sys.stderr):  # some tasks print
            count = write(file, library.rows(reference), max_bytes)
        file.flush()
        return RowsReport(True, rows=count)
    except MemoryError:
        return _failed(InvalidRequest(f"the rows need more than {MEMORY_BYTES >> 30} GiB of memory"))
    except HeadraceError as fault:
        return _failed(fault)


def _failed(fault: HeadraceError) -> RowsReport:
    return RowsReport(False, RequestProblem.of(fault))


def write(file: TextIO, rows: Iterable[dict[str, Any]], max_bytes: int) -> int:
    """Write the rows; returns their number. Raises `InvalidRequest` if they take more than `max_bytes`."""
    written = count = 0
    try:
        for row in rows:
            written += file.write(json.dumps(row, default=plain) + "\n")
            if written > max_bytes:
                raise InvalidRequest(
                    f"{count + 1} rows are beyond {max_bytes} bytes, which a file may have; ask for fewer"
                )
            count += 1
    except OSError as fault:
        if fault.errno != errno.EFBIG:
            raise
        raise InvalidRequest(
            f"{count + 1} rows are beyond {max_bytes} bytes, which a file may have; ask for fewer"
        ) from None
    return count


def plain(value: Any) -> Any:
    """A replacement for a value that JSON cannot hold: numpy's scalars become numbers, fractions and others text."""
    return value.item() if hasattr(value, "item") else str(value)
