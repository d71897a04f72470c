"""System calls that Python's library lacks, and what the process may do. Linux, x86_64 and aarch64.

Every function raises `OSError` that names the call.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from pathlib import Path

ARCHITECTURE = platform.machine()

CAP_DAC_READ_SEARCH, CAP_SETUID, CAP_SYS_ADMIN = 2, 7, 21

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 8, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_SECCOMP_MODE_FILTER = 2
_PR_CAP_AMBIENT_RAISE = 2

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_MOUNT_SETATTR = 442
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Unheld(Exception):
    """This machine does not hold user code as it should; the message says what is missing."""


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def checked(result: int, call: str) -> int:
    """`result`, where it is no failure."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(call: str, number: int, *arguments: object) -> int:
    """A call that the C library has no function for; integers go as 64 bits."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(_libc.syscall(ctypes.c_long(number), *wide), call)


def _prctl(call: str, option: int, *arguments: object) -> None:
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    wide += [ctypes.c_ulong(0)] * (4 - len(wide))
    checked(_libc.prctl(option, *wide), f"prctl({call})")


def signal_at_death_of_parent(number: signal.Signals) -> None:
    """Linux sends it when the *thread* that started this process ends; a change of user ids takes it back."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, int(number))


def adopt_orphans() -> None:
    """Processes below this one whose parent ended become its children."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def gain_nothing_by_exec() -> None:
    """No program that this process starts has more rights than it; cannot be taken back."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def filter_calls(program: bytes) -> None:
    """Install a BPF program over all further system calls; needs `gain_nothing_by_exec`."""
    filter_program = _FilterProgram(len(program) // 8, program)
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_program))


def unshare(flags: int) -> None:
    """New namespaces for this process (that of pids: for its children)."""
    checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """See mount(2)."""
    encoded = None if kind is None else kind.encode()
    done = _libc.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), data.encode())
    checked(done, f"mount on {target}")


def make_read_only(path: str) -> None:
    """Every mount at `path` and below: read-only, without devices or setuid."""
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    place = ctypes.c_char_p(path.encode())
    syscall("mount_setattr", _SYS_MOUNT_SETATTR, -1, place, _AT_RECURSIVE, ctypes.byref(attributes), size)


def enter_root(path: str) -> None:
    """`path`, a mount, becomes the root of every process of this mount namespace; nothing of the old one remains."""
    os.chdir(path)
    here = ctypes.c_char_p(b".")
    syscall("pivot_root", _SYS_PIVOT_ROOT[ARCHITECTURE], here, here)
    checked(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def has_capability(number: int) -> bool:
    """Whether this process may use it now."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def _set_capabilities(kept: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low = kept & 0xFFFFFFFF
    data = (ctypes.c_uint32 * 6)(low, low, low, 0, 0, 0)  # effective, permitted, inheritable; then their upper halves
    checked(_libc.capset(header, data), "capset")


def drop_capabilities() -> None:
    """All of them."""
    _set_capabilities(0)


def become(user: int, *, reading_all: bool) -> None:
    """From root to `user`, for good, with no group and no capability but, where `reading_all`, CAP_DAC_READ_SEARCH.

    That one is passed on to programs it starts.
    """
    if reading_all:
        _prctl("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _set_capabilities(1 << CAP_DAC_READ_SEARCH if reading_all else 0)
    if reading_all:
        _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)


def require_known_architecture() -> None:
    """Raises `Unheld` where the numbers of system calls are not known."""
    if ARCHITECTURE not in _SYS_PIVOT_ROOT:
        raise Unheld(f"the system calls of {ARCHITECTURE} are not known, only those of {', '.join(_SYS_PIVOT_ROOT)}")
