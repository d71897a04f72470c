"""The filter of system calls: calls that user code does not need fail with EPERM, in its children too.

It lists refused calls, not allowed ones: numpy and torch use whatever their versions use. It closes what the
other layers leave open: every kind of socket but unix streams (whose every `connect` is left to `connections`), other
processes' memory, new namespaces and mounts (which would lead out of a mount namespace), files by handle (which
CAP_DAC_READ_SEARCH opens), kernel interfaces with a history of holes, and memory that no limit counts: memfd and System
V, pages that are lent to a pipe or socket, larger pipes, large shared mappings. Calls for another architecture (32
bits) end the process: their numbers mean something else.
"""

from __future__ import annotations

import errno
import struct

from . import syscalls

REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "ioprio_set": (251, 30),
    # another view of the files
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "fanotify_init": (300, 262),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),
    # the kernel's own business
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
"""Numbers on x86_64 and aarch64; `None` where there is no such call."""

UNKNOWN: dict[str, tuple[int, int]] = {
    "clone3": (435, 435),  # its flags lie in memory, where a filter cannot look; the C library then takes `clone`
    # a pipe or socket keeps the whole of a large page, of which it was lent a byte, after all else let go of it
    "splice": (275, 76),
    "vmsplice": (278, 75),
    "tee": (276, 77),
    "sendfile": (40, 71),
}
"""Calls that fail as if the kernel lacked them, so that callers use another way."""
MAX_SHARED_BYTES = 16 << 20
"""Maximum size of a shared anonymous mapping: its pages that are no longer mapped are visible nowhere."""

_CLONE, _MMAP, _FCNTL = (56, 220), (9, 222), (72, 25)
_SET_PIPE_SIZE = 1031
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_HUGETLB = 1, 0x20, 0x40000
_SOCKET, _CONNECT, _SOCKETPAIR, _SET_OPTION = (41, 198), (42, 203), (53, 199), (54, 208)
_NEW_NAMESPACES = 0x7E020000
_UNIX, _STREAM = 1, 1
_OF_SOCKETS, _SEND_BUFFER = 1, 7
_TYPE_MASK = 0xF

_ONLY_ON_ITSELF: dict[tuple[int, int], tuple[int, ...]] = {
    (302, 261): (0,),  # prlimit64(pid, …)
    (203, 122): (0,),  # sched_setaffinity(pid, …)
    (144, 119): (0,),  # sched_setscheduler(pid, …)
    (142, 118): (0,),  # sched_setparam(pid, …)
    (314, 274): (0,),  # sched_setattr(pid, …)
    (141, 140): (0, 1),  # setpriority(PRIO_PROCESS, 0, …)
}
"""Calls that may name another process: these arguments must be 0, which is the caller."""

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_X32 = 0x40000000
_LOAD, _EQUAL, _ATLEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_ASK, _IGNORE = 0x7FC00000, 0x00050000
_REFUSE = 0x00050000 | errno.EPERM
_NO_MEMORY = 0x00050000 | errno.ENOMEM
_UNKNOWN = 0x00050000 | errno.ENOSYS
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


def program(architecture: str) -> bytes:
    """A BPF program over `struct seccomp_data`. It checks the low 32 bits of arguments, all that most calls read."""
    column = _COLUMN[architecture]
    code = [_op(_LOAD, _ARCHITECTURE_AT), _op(_EQUAL, _AUDIT[architecture], 1, 0), _op(_RETURN, _KILL)]
    code += [_op(_LOAD, _NUMBER_AT)]
    if architecture == "x86_64":
        code += [_op(_ATLEAST, _X32, 0, 1), _op(_RETURN, _UNKNOWN)]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            code += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _REFUSE)]
    for both in UNKNOWN.values():
        code += [_op(_EQUAL, both[column], 0, 1), _op(_RETURN, _UNKNOWN)]
    code += _where(_CLONE[column], [_argument(0), _op(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _op(_RETURN, _REFUSE)])
    # a datagram socket can send to any address, one of a pair too
    connected = [_argument(1), _op(_AND, _TYPE_MASK), _op(_EQUAL, _STREAM, 1, 0), _op(_RETURN, _REFUSE)]
    code += _where(_SOCKETPAIR[column], connected)
    local = [_argument(0), _op(_EQUAL, _UNIX, 1, 0), _op(_RETURN, _REFUSE)]
    code += _where(_SOCKET[column], local + connected)
    # what waits in a socket is no process's memory: a larger buffer stays as it was, as where the kernel clamps it
    option = [_argument(1), _op(_EQUAL, _OF_SOCKETS, 0, 3), _argument(2), _op(_EQUAL, _SEND_BUFFER, 0, 1)]
    code += _where(_SET_OPTION[column], [*option, _op(_RETURN, _IGNORE)])
    code += [_op(_EQUAL, _CONNECT[column], 0, 1), _op(_RETURN, _ASK)]
    code += _where(_FCNTL[column], [_argument(1), _op(_EQUAL, _SET_PIPE_SIZE, 0, 1), _op(_RETURN, _REFUSE)])
    code += _where(_MMAP[column], _large_shared_mapping())
    for both, arguments in _ONLY_ON_ITSELF.items():
        tests = [[_argument(index), _op(_EQUAL, 0, 1, 0), _op(_RETURN, _REFUSE)] for index in arguments]
        code += _where(both[column], [part for test in tests for part in test])
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def apply() -> int | None:
    """Install the filter; call `syscalls.gain_nothing_by_exec` first. Returns the file on which every `connect`
    arrives, or `None` if every `connect` fails."""
    return syscalls.filter_calls(program(syscalls.ARCHITECTURE))


def _large_shared_mapping() -> list[bytes]:
    """`mmap(address, length, protection, flags, …)`; huge pages are in no process's memory either."""
    huge = [_argument(3), _op(_ANY_BIT, _MAP_HUGETLB, 0, 1), _op(_RETURN, _NO_MEMORY)]
    upper = [_op(_LOAD, _ARGUMENTS_AT + 8 + 4), _op(_EQUAL, 0, 1, 0), _op(_RETURN, _NO_MEMORY)]
    lower = [_argument(1), _op(_ATLEAST, MAX_SHARED_BYTES + 1, 0, 1), _op(_RETURN, _NO_MEMORY)]
    size = upper + lower
    of_no_file = _op(_ANY_BIT, _MAP_ANONYMOUS, 0, len(size))
    return [*huge, _op(_ANY_BIT, _MAP_SHARED, 0, len(size) + 1), of_no_file, *size]


def _where(number: int, tests: list[bytes]) -> list[bytes]:
    return [_op(_EQUAL, number, 0, len(tests) + 1), *tests, _op(_RETURN, _ALLOW)]


def _argument(index: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS_AT + 8 * index)


def _op(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, on_true, on_false, value)
