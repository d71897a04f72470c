"""The messages between the service and a host process: 4 bytes of length (big-endian), then one JSON message.

    service                          host
       │ ── Setup ──────────────────► │   once
       │ ◄───────── Ready or Broken ─ │   the user's file was imported, or could not be
       │ ── Call(units) ────────────► │
       │ ◄──────────────── Result ─── │   one per unit, as soon as it is known: a crash can be attributed to a unit

A unit is what one call of the function takes: one sample, or a whole group. The format is JSON, because rows come from
JSON lines, with integers of any size; never pickle, because the user's code controls the host's side.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, NamedTuple

import msgspec

from headrace_core.config.reward_permissions import SandboxLevel
from headrace_core.protocols.grader_check import Outcome

from ..protocol import Sample
from ..user_code.argument_binding import Form
from .kernel.resource_limits import ResourceLimits

MAX_RESULT_BYTES = 1 << 20
"""Longest frame that is accepted from a host: the service allocates no more than this for a user's code."""

LENGTH = struct.Struct(">I")


class Setup(msgspec.Struct, tag="setup"):
    """The code to load, and its confinement."""

    path: str
    """The file; if `source` holds the text, only a name for it in tracebacks."""
    function: str
    form: Form
    timeout: float
    """Seconds for one unit."""
    limits: ResourceLimits
    level: SandboxLevel
    hidden: list[str] = []
    """Files and folders that are hidden from the function, even beside its own file."""
    home: str = ""
    """A folder whose dot files are hidden from the function, including their names."""
    source: str | None = None
    beside: str | None = None
    """An installed module that `source` imports: its folder is readable."""
    module: str | None = None
    """Name of the module to import, for a function of an installed package; `path` is in the package's folder."""
    options: dict[str, Any] = {}
    """Arguments of the function that are the same in every call."""
    files: dict[str, bytes] = {}
    """Stored Python files by absolute path: imported instead of the files at these paths."""


class HostReady(msgspec.Struct, tag="ready"):
    """The function is loaded."""

    whole_group: bool
    concurrent: bool
    """Whether the units of a call run at the same time (an async function), so that results come in any order."""


class Broken(msgspec.Struct, tag="broken"):
    """The function could not be loaded; the host ends."""

    message: str
    traceback: str


class Unit(msgspec.Struct):
    """What one call of the function takes. Its `Result` has the same `index`."""

    index: int
    samples: list[Sample]


class Encoded(NamedTuple):
    """An encoded `Unit`, and its number of samples."""

    body: msgspec.Raw
    samples: int


class Call(msgspec.Struct, tag="call"):
    """Units to be scored; each is an encoded `Unit`."""

    units: list[msgspec.Raw]


class Result(msgspec.Struct, tag="result"):
    """The outcomes of one unit, one per sample, in order."""

    index: int
    outcomes: list[Outcome]


encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Setup | Call).decode
decode_unit = msgspec.json.Decoder(Unit).decode
decode_reply = msgspec.json.Decoder(HostReady | Broken | Result).decode


def frame(body: bytes) -> bytes:
    """The bytes of one encoded message, with its length."""
    return LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message from a host. Raises `ValueError` if it is too long, `asyncio.IncompleteReadError` at the end."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > MAX_RESULT_BYTES:
        raise ValueError(f"a result of {length} bytes; at most {MAX_RESULT_BYTES} are taken")
    return await reader.readexactly(length)
