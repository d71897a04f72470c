"""`python -m headrace_rewards tasks`: the rows of a reference, as a file. JSON in on stdin, JSON out on stdout.

    in   {"reference": "reasoning_gym:chain_sum?size=10", "path": "/…/rows.jsonl", "max_bytes": 1000000}
    out  {"ok": true, "error": null, "rows": 10}
         {"ok": false, "error": {"message", "param", "code"}, "rows": 0}

The same reference gives the same bytes: some tasks go through sets of strings, so strings are hashed without a secret.
The process holds itself: what it may write and how much memory it may take is limited, since parameters are a user's
(`max_digits=1000000000`); how long it may take is for its caller to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from headrace_core.errors import HeadraceError, InvalidRequest
from headrace_rewards.tasks.reference import Reference

MEMORY_BYTES = 4 << 30
_MAKERS = {"reasoning_gym": "gym", "verifiers": "environments"}


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What stdin holds; the file at `path` is made, or replaced."""

    reference: str
    path: str
    max_bytes: int


class Report(msgspec.Struct):
    """What stdout gets."""

    ok: bool
    error: dict[str, str | None] | None = None
    rows: int = 0


def main() -> None:
    """Answer the request; a fault of the user's is in the report, a fault of ours is raised."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", "headrace_rewards", "tasks"]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        report = Report(True, rows=_make(request))
    except HeadraceError as fault:
        report = Report(False, {"message": fault.message, "param": fault.param, "code": fault.code})
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _make(request: Request) -> int:
    reference = Reference.parse(request.reference)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Imported under the limit, and only for a reference that can be read.
    library = import_module(f"headrace_rewards.tasks.{_MAKERS[reference.library]}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some tasks print
            return write(Path(request.path), library.rows(reference), request.max_bytes)
    except MemoryError:
        raise InvalidRequest(f"{request.reference} needs more than {MEMORY_BYTES >> 30} GiB of memory") from None


def write(path: Path, rows: Iterable[dict[str, Any]], most: int) -> int:
    """How many rows were written to the file; raises `InvalidRequest` where they have more than `most` bytes."""
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            written += file.write(json.dumps(row, default=plain) + "\n")
            if written > most:
                raise InvalidRequest(f"{count + 1} rows are beyond {most} bytes, which a file may have; ask for fewer")
            count += 1
    return count


def plain(value: Any) -> Any:
    """What JSON holds in place of a value it does not know: numpy's scalars as numbers, fractions as text."""
    return value.item() if hasattr(value, "item") else str(value)
