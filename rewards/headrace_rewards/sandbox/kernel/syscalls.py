"""System calls that Python's library lacks, and the capabilities of this process. Linux, x86_64 and aarch64.

Every function raises `OSError` that names the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

ARCHITECTURE = platform.machine()

CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN = 2, 19, 21

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_PR_CAP_AMBIENT_RAISE = 2

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SYS_PIDFD_GETFD, _SYS_MOUNT_SETATTR = 438, 442
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class ContainmentFailed(Exception):
    """This machine cannot contain user code at the required level; the message says what is missing."""


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


class _MemoryRange(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def checked(result: int, call: str) -> int:
    """Return `result`; raises `OSError` if it is an error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(call: str, number: int, *arguments: object) -> int:
    """Make a call for which the C library has no function; integers are passed as 64 bits."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(_libc.syscall(ctypes.c_long(number), *wide), call)


def _prctl(call: str, option: int, *arguments: object) -> None:
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    wide += [ctypes.c_ulong(0)] * (4 - len(wide))
    checked(_libc.prctl(option, *wide), f"prctl({call})")


def signal_at_death_of_parent(number: signal.Signals) -> None:
    """Signal for this process when the *thread* that started it ends; a change of user ids resets it."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, int(number))


def adopt_orphans() -> None:
    """Make descendants of this process whose parent ended its children."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def gain_nothing_by_exec() -> None:
    """No program that this process starts gains rights; irrevocable."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def filter_calls(program: bytes) -> int | None:
    """Install a BPF program over all further system calls; needs `gain_nothing_by_exec`.

    Returns the file on which the calls arrive that the program passes to a supervisor: see seccomp_unotify(2). `None`
    if an outer filter already has a listener, and the kernel allows no second: those calls then fail.
    """
    filter_program = _FilterProgram(len(program) // 8, program)
    install = (_SYS_SECCOMP[ARCHITECTURE], _SECCOMP_SET_MODE_FILTER)
    # a signal does not interrupt a call that the listener has received; since Linux 5.19
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        try:
            return syscall("seccomp", *install, flags, ctypes.byref(filter_program))
        except OSError as fault:
            if fault.errno not in (errno.EINVAL, errno.EBUSY):
                raise
    syscall("seccomp", *install, 0, ctypes.byref(filter_program))
    return None


def be_traceable() -> None:
    """Allow processes of the same user to trace this one; a change of users resets that."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 1)


def read_memory(thread: int, address: int, size: int) -> bytes:
    """Up to `size` bytes of another process' memory; fewer if the mapping ends before."""
    buffer = ctypes.create_string_buffer(size)
    local = _MemoryRange(ctypes.addressof(buffer), size)
    remote = _MemoryRange(address, size)
    read = _libc.process_vm_readv(thread, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return buffer.raw[: checked(read, "process_vm_readv")]


def take_descriptor(process: int, number: int) -> int:
    """A descriptor in this process of the file that another process (by its pidfd) has open as `number`."""
    return syscall("pidfd_getfd", _SYS_PIDFD_GETFD, process, number, 0)


def unshare(flags: int) -> None:
    """Create new namespaces for this process (that of process ids: for its children)."""
    checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """See mount(2)."""
    encoded = None if kind is None else kind.encode()
    done = _libc.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), data.encode())
    checked(done, f"mount on {target}")


def make_read_only(path: str) -> None:
    """Make every mount at `path` and below read-only, without devices or setuid."""
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    place = ctypes.c_char_p(path.encode())
    syscall("mount_setattr", _SYS_MOUNT_SETATTR, -1, place, _AT_RECURSIVE, ctypes.byref(attributes), size)


def enter_root(path: str) -> None:
    """Make the mount `path` the root of every process of this mount namespace; nothing of the old root remains."""
    os.chdir(path)
    here = ctypes.c_char_p(b".")
    syscall("pivot_root", _SYS_PIVOT_ROOT[ARCHITECTURE], here, here)
    checked(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def has_capability(number: int) -> bool:
    """Whether this process has the capability in effect."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def _set_capabilities(kept: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low = kept & 0xFFFFFFFF
    data = (ctypes.c_uint32 * 6)(low, low, low, 0, 0, 0)  # effective, permitted, inheritable; then their upper halves
    checked(_libc.capset(header, data), "capset")


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    _set_capabilities(0)


def become(user: int, *, reading_all: bool) -> None:
    """Change irrevocably from root to `user`, without groups and, but for CAP_DAC_READ_SEARCH if `reading_all`, without
    capabilities.

    Programs that it starts inherit that capability.
    """
    if reading_all:
        _prctl("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _set_capabilities(1 << CAP_DAC_READ_SEARCH if reading_all else 0)
    if reading_all:
        _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)


@contextlib.contextmanager
def finding_files_as(user: int) -> Iterator[None]:
    """Within the context, root has only the file permissions of `user`, and stays root for everything else."""
    _libc.setfsgid(user)
    _libc.setfsuid(user)
    try:
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())


@contextlib.contextmanager
def real_user(user: int) -> Iterator[None]:
    """Within the context, root becomes `user`, who may trace their own processes; needs CAP_SETUID."""
    os.setresgid(user, user, 0)
    os.setresuid(user, user, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def file_of_signals(signals: Iterable[int]) -> int:
    """A file that has input when one of these, which are blocked, is pending: see signalfd(2)."""
    wanted = ctypes.create_string_buffer(128)
    checked(_libc.sigemptyset(wanted), "sigemptyset")
    for number in signals:
        checked(_libc.sigaddset(wanted, int(number)), "sigaddset")
    return checked(_libc.signalfd(-1, wanted, os.O_CLOEXEC | os.O_NONBLOCK), "signalfd")


def require_known_architecture() -> None:
    """Raises `ContainmentFailed` if the numbers of this architecture's system calls are not known."""
    if ARCHITECTURE not in _SYS_PIVOT_ROOT:
        raise ContainmentFailed(
            f"the system calls of {ARCHITECTURE} are not known, only those of {', '.join(_SYS_PIVOT_ROOT)}"
        )
