"""Control groups of Linux (version 2): if part of their tree is the service's, the kernel itself limits what a host
and all processes that it started use together. See cgroups(7).

    the service's group ─┬─ headrace-service    the service: a group whose children have controllers has no processes
                         └─ headrace-reward-…   one for each host: memory.max, pids.max; cgroup.kill at its end

`headrace serve` calls `claim` once, at its start, to make the upper part. The guard calls `make` before it forks its
host. A group counts what `usage` has to estimate: buffers of pipes and sockets, shared memory that nobody maps, the
kernel's own data about a process.

A group is the service's if systemd says so (`Delegate=yes`), if it is the root of a container's own tree, if an
administrator gave it to the service's user, or if it is the machine's root group and the service is root.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .resource_limits import ResourceLimits

_SERVICE: Final = "headrace-service"
_HOST: Final = "headrace-reward"
_CONTROLLERS: Final = {"memory", "pids"}
_MAX_MOVES = 100
"""Rounds of moving processes: during a round they may start others."""
_END_SECONDS, _POLL_SECONDS = 5.0, 0.005


class _NoGroups(Exception):
    """The service has no control groups; the message says why."""


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """The control group of one host. Its guard accesses it by open files: a mount namespace shows no groups."""

    place: int
    """Open folder of the parent group."""
    name: str
    entry: int
    """Open file `cgroup.procs`: a process that writes `0` to it joins the group."""
    limits: ResourceLimits

    def join(self) -> None:
        """Move this process, and those that it will start, into the group irrevocably, and close the group's files."""
        os.write(self.entry, b"0")
        os.close(self.entry)
        os.close(self.place)

    def out_of_memory(self) -> str | None:
        """An error message if the kernel ended processes of the group for their memory, else `None`."""
        with open(os.open(f"{self.name}/memory.events", os.O_RDONLY, dir_fd=self.place)) as events:
            if all(line.split() != ["oom_kill", "0"] for line in events):
                return f"its processes used more than {self.limits.memory_bytes} bytes of memory together"
        return None

    def end(self) -> None:
        """Kill every process in it, and remove it."""
        _end(self.place, self.name)
        os.close(self.entry)
        os.close(self.place)


def make(limits: ResourceLimits) -> ControlGroup | None:
    """A group for a host that is forked next; `None` if the service has no groups: then the guard counts."""
    try:
        return _make(_place(), limits)
    except _NoGroups:
        return None


def sweep() -> None:
    """End the groups of hosts whose guard has ended without ending them, for example by SIGKILL."""
    try:
        place = _place()
    except _NoGroups:
        return
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(folder):
            if name.startswith(f"{_HOST}-{_namespace()}-"):
                guard, started = name.split("-")[-2:]
                if _started(int(guard)) != started:
                    _end(folder, name)
    finally:
        os.close(folder)


def held() -> str:
    """A description, for people, of what limits memory on this machine; makes a group to find out."""
    try:
        place = _place()
        _make(place, ResourceLimits()).end()
    except _NoGroups as fault:
        return f"memory counted by the guard ({fault})"
    return f"memory held by the kernel (control groups in {place})"


def claim() -> None:
    """Prepare the group of this process for groups of hosts below it, if it is the service's.

    Moves every process of that group into a child group, `headrace-service`.
    """
    with contextlib.suppress(_NoGroups, OSError):  # `held` says what is missing
        own, root = _own()
        for place in (own.parent, own):
            if own.name != _SERVICE and _is_ours(place, own, root):
                _open(place, root)
                return


def main() -> None:
    """`python -m headrace_rewards control-groups`: claim groups, and write to stdout what limits memory then (JSON)."""
    claim()
    sys.stdout.write(json.dumps(held()) + "\n")


def _open(place: Path, root: Path) -> None:
    """Enable the controllers in the groups below `place`. Raises `OSError`."""
    if not set((place / "cgroup.controllers").read_text().split()) >= _CONTROLLERS:
        return
    if not _is_real_root(place, root):
        service = place / _SERVICE
        service.mkdir(exist_ok=True)
        for _ in range(_MAX_MOVES):
            left = (place / "cgroup.procs").read_text().split()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    (service / "cgroup.procs").write_text(pid)
    (place / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(_CONTROLLERS)))


def _make(place: Path, limits: ResourceLimits) -> ControlGroup:
    """Make the group of a host in `place`. Raises `_NoGroups`."""
    name = f"{_HOST}-{_namespace()}-{os.getpid()}-{_started(os.getpid())}"
    path = place / name
    try:
        path.mkdir()
        try:
            _set(path, limits)
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return ControlGroup(folder, name, os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC), limits)
        except BaseException:
            path.rmdir()
            raise
    except OSError as fault:
        raise _NoGroups(f"no control group can be made in {place}: {fault.strerror}") from None


def _set(path: Path, limits: ResourceLimits) -> None:
    if not (path / "cgroup.kill").exists():
        raise _NoGroups("control groups cannot be ended at once: that takes Linux 5.14")
    (path / "memory.max").write_text(str(limits.memory_bytes))
    (path / "memory.oom.group").write_text("1")
    (path / "pids.max").write_text(str(limits.processes))
    if (path / "memory.swap.max").exists():
        (path / "memory.swap.max").write_text("0")
    elif len(Path("/proc/swaps").read_text().splitlines()) > 1:
        raise _NoGroups("control groups do not count swap here")


def _place() -> Path:
    """The group in which the groups of hosts are made. Raises `_NoGroups`."""
    own, root = _own()
    missing = _CONTROLLERS - set((own / "cgroup.controllers").read_text().split())
    if missing:
        raise _NoGroups(f"the control group {own} lacks {' and '.join(sorted(missing))}")
    for place in (own.parent, own):
        if _is_ours(place, own, root) and _has_controllers(place):
            return place
    if _is_ours(own, own, root):
        raise _NoGroups(f"the control group {own} is not divided yet: `headrace serve` does that")
    raise _NoGroups(f"the control group {own} is not the service's to divide")


def _own() -> tuple[Path, Path]:
    """The group of this process, and the root of the visible tree. Raises `_NoGroups`."""
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    name = next((line[3:] for line in groups if line.startswith("0::")), None)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):  # a later mount covers an earlier one
        mount, _, kind = line.partition(" - ")
        if name is not None and kind.startswith("cgroup2 "):
            shown, root = mount.split()[3:5]
            if not name.startswith("/..") and Path(name).is_relative_to(shown):  # `/..`: outside of its namespace
                return Path(root, Path(name).relative_to(shown)), Path(root)
    raise _NoGroups("control groups of version 2 are not mounted")


def _is_ours(place: Path, own: Path, root: Path) -> bool:
    """Whether the service may make groups in `place`."""
    if not place.is_relative_to(root) or not os.access(place, os.W_OK):
        return False
    if _is_real_root(place, root):
        return own == place and os.getuid() == 0
    if place == root or own == place / _SERVICE:
        return True
    for attribute in ("user.delegate", "trusted.delegate"):  # as systemd marks them
        with contextlib.suppress(OSError):
            if os.getxattr(place, attribute) == b"1":
                return True
    user = os.getuid()
    return user != 0 and place.stat().st_uid == user != place.parent.stat().st_uid


def _is_real_root(place: Path, root: Path) -> bool:
    """Whether it is the machine's root group, not a container's; only that may have both processes and controllers."""
    return place == root and not (place / "cgroup.type").exists()


def _has_controllers(place: Path) -> bool:
    return set((place / "cgroup.subtree_control").read_text().split()) >= _CONTROLLERS


def _end(folder: int, name: str) -> None:
    """Kill all processes of the group, and remove it, unless another process does. The kernel needs a moment."""
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(FileNotFoundError):
        kill = os.open(f"{name}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.write(kill, b"1")
        finally:
            os.close(kill)
        while time.monotonic() < deadline:  # else the next sweep tries again
            try:
                os.rmdir(name, dir_fd=folder)
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(_POLL_SECONDS)
            else:
                return


def _namespace() -> int:
    """Id of the process namespace, whose process numbers the names of groups contain."""
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> str:
    """Start time of the process, in ticks, which tells it from a later one with the same number; empty if none runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
