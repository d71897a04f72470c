"""The frames between the service and a host process: 4 bytes of length (big-endian), then one JSON message.

    service                          host
       │ ── Setup ──────────────────► │   once
       │ ◄───────── Ready or Broken ─ │   the user's file was imported, or could not be
       │ ── Call(units) ────────────► │
       │ ◄──────────────── Result ─── │   one a unit, as soon as it is known, so that a crash can be pinned to a unit

A unit is what the function takes at a time: one sample, or the whole group. JSON, because rows come from JSON lines and
keep their integers of any size; never pickle, because the host's side is in the hands of a user.
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
"""A longer frame from a host is refused; the service allocates no more than this on a user's word."""

LENGTH = struct.Struct(">I")


class Setup(msgspec.Struct, tag="setup"):
    """What to load, and how to hold it."""

    path: str
    """The file; where `source` is its text, only a name for it, shown in tracebacks."""
    function: str
    form: Form
    timeout: float
    """Seconds for one unit."""
    limits: ResourceLimits
    level: SandboxLevel
    hidden: list[str] = []
    """Files and folders that the function sees nothing of, though they lie beside it."""
    home: str = ""
    """A folder of which it sees nothing that begins with a dot; their names are not told to its process."""
    source: str | None = None
    beside: str | None = None
    """An installed module that `source` imports: the folder that holds it may be read."""
    module: str | None = None
    """Imported by its name, from the folder in which `path` lies, where it is an installed package's."""
    options: dict[str, Any] = {}
    """Arguments of the function that are the same in every call."""
    files: dict[str, bytes] = {}
    """Python files as they were kept, by absolute path: imported instead of those there."""


class HostReady(msgspec.Struct, tag="ready"):
    """The function is loaded."""

    whole_group: bool
    concurrent: bool
    """The units of a call run at once (an async function), so results come in any order."""


class Broken(msgspec.Struct, tag="broken"):
    """The function could not be loaded; the host ends."""

    message: str
    traceback: str


class Unit(msgspec.Struct):
    """What the function takes at a time. `index` names it in its `Result`."""

    index: int
    samples: list[Sample]


class Encoded(NamedTuple):
    """A unit on its way: an encoded `Unit` of so many `samples`."""

    body: msgspec.Raw
    samples: int


class Call(msgspec.Struct, tag="call"):
    """Units to be scored; each is an encoded `Unit`."""

    units: list[msgspec.Raw]


class Result(msgspec.Struct, tag="result"):
    """The outcomes of one unit, one a sample, in order."""

    index: int
    outcomes: list[Outcome]


encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Setup | Call).decode
decode_unit = msgspec.json.Decoder(Unit).decode
decode_reply = msgspec.json.Decoder(HostReady | Broken | Result).decode


def frame(body: bytes) -> bytes:
    """The bytes to send for one encoded message."""
    return LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message from a host; `ValueError` where it is too long, `asyncio.IncompleteReadError` at the end."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > MAX_RESULT_BYTES:
        raise ValueError(f"a result of {length} bytes; at most {MAX_RESULT_BYTES} are taken")
    return await reader.readexactly(length)
