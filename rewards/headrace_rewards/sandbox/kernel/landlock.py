"""Landlock: restricts the files that a process and its children may open, whatever their user is. See landlock(7).

It also prevents them from tracing outside processes and, if the kernel supports it, from signalling them and from TCP.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from . import syscalls

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_ALL_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_READING = _EXECUTE | _READ_FILE | _READ_DIR
_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
TRUNCATION_SINCE = 3
"""The first version that can refuse truncation."""
_SCOPES_SINCE = 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Version of the kernel's Landlock. Raises `OSError` if it has none."""
    return syscalls.syscall("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION_FLAG)


def holds_signals() -> bool:
    """Whether Landlock can refuse signals to outside processes."""
    return version() >= _SCOPES_SINCE


def apply(readable: Iterable[Path], listed: Iterable[Path], writable: Iterable[Path]) -> None:
    """Restrict this process to these paths and everything below them; call `syscalls.gain_nothing_by_exec` first.

    Folders in `listed`, and those below, can only be listed.
    """
    known = version()
    files = _ALL_BY_VERSION[min(known, max(_ALL_BY_VERSION))]
    wanted = _Ruleset(files, _TCP if known >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if known >= _SCOPES_SINCE else 0)
    size = 8 if known < 4 else 16 if known < _SCOPES_SINCE else 24
    ruleset = syscalls.syscall("landlock_create_ruleset", _CREATE_RULESET, ctypes.byref(wanted), size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READING)
        for path in listed:
            _allow(ruleset, path, _READ_DIR)
        for path in writable:
            _allow(ruleset, path, files)
        syscalls.syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = ctypes.byref(_PathBeneath(rights, place))
        syscalls.syscall("landlock_add_rule", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(place)
