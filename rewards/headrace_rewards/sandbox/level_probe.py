"""Finds the strictest sandbox level that this machine supports, by running a function that tries to break out.

probe_level ─► isolated? ─► filtered? ─► limits        the report says why each stricter level is not supported
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace_core.config.reward_permissions import SANDBOX_LEVELS, SandboxLevel
from headrace_core.errors import InvalidRequest, Unavailable
from headrace_core.protocols.grader_check import Score

from ..protocol import Sample
from . import frames
from .host_supervisor import HostSupervisor
from .kernel import control_groups, syscalls
from .kernel.resource_limits import ResourceLimits

_SECONDS = 60.0
"""Time limit for the start and for the answer. It is generous: a timeout would count as a level that is not
supported."""

_ESCAPES = """
import os, socket

def network():
    socket.socket().close()

def write_outside(path):
    with open(path, "a"): pass

def read_outside(path):
    with open(path): pass

def see_others():
    if len([name for name in os.listdir("/proc") if name.isdigit()]) > 5: return
    raise PermissionError

def grade(item):
    acts = {"network": network, "write outside its folder": lambda: write_outside(item["file"])}
    acts["read the files of others"] = lambda: read_outside(item["file"])
    if item["level"] == "isolated": acts["see other processes"] = see_others
    found = {}
    for name, act in acts.items():
        try: act()
        except OSError: found[name] = 0
        else: found[name] = 1
    return found
"""


@dataclass(frozen=True, slots=True)
class MachineReport:
    """The strictest supported `level`; `shortfalls`: why each stricter level is not supported."""

    level: SandboxLevel
    shortfalls: dict[SandboxLevel, str]

    def require(self, wanted: SandboxLevel) -> None:
        """Raises `Unavailable` if the machine supports only a less strict level."""
        if SANDBOX_LEVELS.index(self.level) < SANDBOX_LEVELS.index(wanted):
            raise Unavailable(
                f"user code is refused: the operator asks for sandbox level '{wanted}', and this machine holds "
                f"'{self.level}' ({self.shortfalls[wanted]})"
            )

    def __str__(self) -> str:
        missing = "; ".join(f"not {level}: {reason}" for level, reason in self.shortfalls.items())
        return f"{self.level} ({missing})" if missing else self.level


_report: MachineReport | None = None


async def probe_level() -> MachineReport:
    """The machine's report. The first call in a process starts up to two host processes; later calls are immediate."""
    global _report
    if _report is None:
        _report = await _probe_levels()
    return _report


def probe_in_child() -> None:
    """Run `probe_level` in a child process, and store its report here, for all processes that this one forks later.

    The child keeps the probe's event loop, threads and children out of this process. If it fails, each forked process
    probes for itself.
    """
    global _report
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            syscalls.signal_at_death_of_parent(signal.SIGKILL)
            os.close(reading)
            os.write(writing, msgspec.json.encode(asyncio.run(probe_level())))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    _report = msgspec.json.decode(found, type=MachineReport) if found else None


async def _probe_levels() -> MachineReport:
    shortfalls: dict[SandboxLevel, str] = {}
    for level in reversed(SANDBOX_LEVELS[1:]):
        shortfall = await _probe(level)
        if shortfall is None:
            return MachineReport(level, shortfalls)
        shortfalls[level] = shortfall
    return MachineReport(SANDBOX_LEVELS[0], shortfalls)


async def _probe(level: SandboxLevel) -> str | None:
    """Why this level is not supported; `None` if it is."""
    limits = ResourceLimits(start_seconds=_SECONDS)
    setup = frames.Setup("the trial of the sandbox", "grade", "text", _SECONDS, limits, level, source=_ESCAPES)
    supervisor = HostSupervisor(setup, "sandbox")
    with tempfile.NamedTemporaryFile(prefix="headrace-trial-") as outside:
        os.chmod(outside.name, 0o666)
        try:
            await supervisor.start()
            item = {"level": level, "file": str(Path(outside.name))}
            [[outcome]] = await supervisor.score([[Sample("", item)]])
        except (InvalidRequest, OSError) as fault:
            return str(fault)
        finally:
            supervisor.stop()
            await asyncio.shield(supervisor.reap())
    if not isinstance(outcome, Score):
        return f"the trial ended with {outcome}"
    open_still = [name for name, value in outcome.components.items() if value]
    return f"a function could still {', '.join(open_still)}" if open_still else None


def main() -> None:
    """`python -m headrace_rewards sandbox`: reads the required level from stdin (JSON), writes a report for people."""
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=SandboxLevel)
    machine = asyncio.run(probe_level())
    try:
        machine.require(wanted)
        answer = f"{machine}; {control_groups.held()}"
    except Unavailable as refused:
        answer = refused.message
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
