"""The first process of a Linux that runs as a process of this machine: what control groups hold, tried on real ones.

`linux.uml` shows it the machine's files, read-only; it has its own processes, memory and groups. It prints what it
found as the last line, JSON, and turns its machine off.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup")
_REBOOT_MAGIC, _REBOOT_AGAIN, _POWER_OFF = 0xFEE1DEAD, 672274793, 0x4321FEDC
_SYS_REBOOT = 169
_CLONE_NEWNS, _CLONE_NEWCGROUP = 0x00020000, 0x02000000

REWARD = """
import ctypes, mmap, os, time

def behave(): return 1

def children():
    for _ in range(4):
        if os.fork() == 0:
            held = b"x" * (24 << 20)
            time.sleep(60)
    time.sleep(60)

def unmapped():
    pieces = []
    for _ in range(6):
        pieces.append(mmap.mmap(-1, 16 << 20))
        for _ in range(16): pieces[-1].write(bytes(1 << 20))
        start = ctypes.addressof(ctypes.c_char.from_buffer(pieces[-1])) + mmap.PAGESIZE
        ctypes.CDLL(None).munmap(ctypes.c_void_p(start), ctypes.c_size_t((16 << 20) - mmap.PAGESIZE))
    return 2

def pipes():
    for _ in range(100):
        _, end = os.pipe()
        os.set_blocking(end, False)
        try:
            while os.write(end, b"x" * 65536): pass
        except BlockingIOError: pass
    return 3

def forks():
    for _ in range(40):
        if os.fork() == 0: time.sleep(60)

def daemon():
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    return 4

def grade(completion): return globals()[completion]()
"""


def mounted() -> None:
    """What the reward processes expect of a machine."""
    from headrace_rewards.sandbox.kernel import syscalls

    Path("/dev/shm").mkdir(exist_ok=True)
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/dev/shm"), ("tmpfs", "/run")):
        syscalls.mount(kind, place, kind, 0)
    syscalls.mount("cgroup2", str(GROUPS), "cgroup2", 0)
    Path("/run/reward.py").write_text(REWARD)
    os.environ.update(TMPDIR="/run", HOME="/run", PATH="/usr/bin:/bin", OMP_NUM_THREADS="1")


async def scored(level: Any, *completions: str) -> dict[str, str]:
    """How each act ended, and how many groups were there while it ran, and after."""
    from headrace_rewards.graders.function import FunctionReward, FunctionSpec
    from headrace_rewards.protocol import Sample
    from headrace_rewards.sandbox.kernel.resource_limits import ResourceLimits

    spec = FunctionSpec(type="function", name="t", function="/run/reward.py:grade", timeout=40)
    reward = FunctionReward(spec, limits=ResourceLimits(memory_bytes=64 << 20, processes=12), level=level)
    await reward.start()
    found = {"groups": str(len(of_hosts()))}
    try:
        for completion in completions:
            [outcome] = await reward.score([Sample(completion)])
            found[completion] = str(outcome)
        if "daemon" in completions:
            [guard] = [pid for pid in guards() if parent(pid) == os.getpid()]
            os.kill(guard, signal.SIGKILL)
    finally:
        await reward.close()
    return found | {
        "groups after": str(len(of_hosts())),
        "guards after": str(len(guards())),
    }


def guards() -> list[int]:
    """And what they forked: it has the same command line."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and "sandbox.guard" in command(int(name))]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def of_hosts() -> list[Path]:
    return list(GROUPS.rglob("headrace-reward-*"))


def claimed() -> list[str]:
    """What holds memory before and after, and the group of this process then."""
    from headrace_rewards.sandbox.kernel import control_groups

    before = control_groups.held()
    control_groups.claim()
    return [before, control_groups.held(), Path("/proc/self/cgroup").read_text().strip()]


def in_a_container() -> list[str]:
    from headrace_rewards.sandbox.kernel import syscalls

    enter("container")
    syscalls.unshare(_CLONE_NEWNS | _CLONE_NEWCGROUP)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", str(GROUPS), "tmpfs", 0)  # no file system is mounted over itself
    syscalls.mount("cgroup2", str(GROUPS), "cgroup2", 0)
    return claimed()


def in_a_group_of_somebody() -> list[str]:
    enter("somebody")
    return claimed()


def in_a_delegated_group() -> list[str]:
    enter("delegated")
    os.setxattr(GROUPS / "delegated", "trusted.delegate", b"1")
    return claimed()


def enter(name: str) -> None:
    (GROUPS / name).mkdir()
    (GROUPS / name / "cgroup.procs").write_text("0")


def apart(part: Callable[[], list[str]]) -> list[str]:
    """In a process of its own, which does not come back from where it goes."""
    heard, told = os.pipe()
    if os.fork() == 0:
        try:
            os.write(told, json.dumps(part()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(heard, "rb") as answer:
        found: list[str] = json.loads(answer.read() or b"[]")
    return found


def main() -> None:
    """Everything, in the order in which the parts need each other."""
    mounted()
    found: dict[str, Any] = {"seconds": time.monotonic(), "root": claimed()}
    found["isolated"] = asyncio.run(scored("isolated", "behave", "children", "unmapped", "pipes"))
    found["limits"] = asyncio.run(scored("limits", "forks"))
    found["killed"] = asyncio.run(scored("limits", "daemon"))
    for part in (in_a_container, in_a_group_of_somebody, in_a_delegated_group):
        found[part.__name__] = apart(part)
    found["seconds"] = time.monotonic() - found["seconds"]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).syscall(_SYS_REBOOT, _REBOOT_MAGIC, _REBOOT_AGAIN, _POWER_OFF, 0)
