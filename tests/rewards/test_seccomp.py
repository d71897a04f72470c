"""The filter of system calls, decided by a small machine for its byte code: also for the architecture that is not here.

The numbers are those of Linux's own tables (`asm/unistd_64.h`, `asm-generic/unistd.h`).
"""

from __future__ import annotations

import errno
import struct

import pytest

from headrace_rewards.sandbox.kernel import seccomp

ALLOWED, ASKED, KILLED, IGNORED = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x00050000
X86, ARM = "x86_64", "aarch64"
AUDIT = {X86: 0xC000003E, ARM: 0xC00000B7}
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
CLONE_NEWUSER, SIGCHLD = 0x10000000, 17
AF_UNIX, AF_INET, AF_NETLINK = 1, 2, 16
SOL_SOCKET, SO_SNDBUF, SO_SNDTIMEO = 1, 7, 21
ENOMEM = 0x00050000 | errno.ENOMEM
F_GETFL, F_SETPIPE_SZ = 3, 1031
SHARED, PRIVATE, SHARED_VALIDATE, ANONYMOUS, HUGE_PAGES = 1, 2, 3, 0x20, 0x40000
MIB16 = 16 << 20
STREAM, DATAGRAM, CLOEXEC = 1, 2, 0o2000000


def decide(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """What the kernel would do with this call."""
    wide = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, audit, 0, *(value & 0xFFFFFFFFFFFFFFFF for value in wide))
    accumulator = at = 0
    while True:
        code, on_true, on_false, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += on_true if holds else on_false


@pytest.mark.parametrize(
    ("architecture", "number", "arguments", "decision"),
    [
        (X86, 0, (), ALLOWED),  # read
        (X86, 41, (AF_UNIX, STREAM | CLOEXEC), ALLOWED),  # socket
        (ARM, 198, (AF_UNIX, STREAM), ALLOWED),
        (X86, 41, (AF_UNIX, DATAGRAM), EPERM),
        (X86, 41, (AF_INET, STREAM), EPERM),
        (ARM, 198, (AF_INET, STREAM), EPERM),
        (ARM, 198, (AF_NETLINK, DATAGRAM), EPERM),
        (X86, 54, (3, SOL_SOCKET, SO_SNDBUF), IGNORED),  # setsockopt
        (ARM, 208, (3, SOL_SOCKET, SO_SNDBUF), IGNORED),
        (X86, 54, (3, SOL_SOCKET, SO_SNDTIMEO), ALLOWED),
        (X86, 54, (3, 6, SO_SNDBUF), ALLOWED),
        (X86, 42, (3,), ASKED),  # connect
        (ARM, 203, (3,), ASKED),
        (X86, 53, (AF_UNIX, STREAM | CLOEXEC), ALLOWED),  # socketpair
        (X86, 53, (AF_UNIX, DATAGRAM | CLOEXEC), EPERM),
        (ARM, 199, (AF_UNIX, DATAGRAM), EPERM),
        (X86, 56, (SIGCHLD,), ALLOWED),  # clone
        (X86, 56, (SIGCHLD | CLONE_NEWUSER,), EPERM),
        (ARM, 220, (SIGCHLD | CLONE_NEWUSER,), EPERM),
        (ARM, 220, (SIGCHLD,), ALLOWED),
        (X86, 435, (), ENOSYS),  # clone3
        (ARM, 435, (), ENOSYS),
        (X86, 40, (1, 2), ENOSYS),  # sendfile
        (ARM, 71, (1, 2), ENOSYS),
        (X86, 72, (3, F_SETPIPE_SZ, 1 << 20), EPERM),  # fcntl
        (ARM, 25, (3, F_SETPIPE_SZ, 1 << 20), EPERM),
        (X86, 72, (3, F_GETFL), ALLOWED),
        (X86, 9, (0, MIB16, 3, SHARED | ANONYMOUS), ALLOWED),  # mmap
        (X86, 9, (0, MIB16 + 1, 3, SHARED | ANONYMOUS), ENOMEM),
        (ARM, 222, (0, MIB16 + 1, 3, SHARED | ANONYMOUS), ENOMEM),
        (X86, 9, (0, 1 << 32, 3, SHARED | ANONYMOUS), ENOMEM),
        (X86, 9, (0, 1 << 32, 3, SHARED_VALIDATE | ANONYMOUS), ENOMEM),
        (X86, 9, (0, 1 << 32, 3, PRIVATE | ANONYMOUS), ALLOWED),
        (X86, 9, (0, 1 << 32, 3, SHARED, 5), ALLOWED),
        (X86, 9, (0, 4096, 3, PRIVATE | ANONYMOUS | HUGE_PAGES), ENOMEM),
        (X86, 304, (), EPERM),  # open_by_handle_at
        (ARM, 265, (), EPERM),
        (X86, 101, (), EPERM),  # ptrace
        (ARM, 117, (), EPERM),
        (X86, 302, (0, 7), ALLOWED),  # prlimit64 of itself
        (X86, 302, (1234, 7), EPERM),
        (ARM, 261, (1234, 7), EPERM),
        (X86, 141, (0, 0, 5), ALLOWED),  # setpriority of itself
        (X86, 141, (2, 0, 5), EPERM),
        (X86, 141, (0, 1234, 5), EPERM),
        (X86, 62, (1234, 9), ALLOWED),  # kill: other users, Landlock and namespaces see to it
        (X86, 0x40000000 | 41, (), ENOSYS),  # the 32-bit pointers of x32
        (X86, 1000, (), ALLOWED),
    ],
)
def test_decisions(architecture: str, number: int, arguments: tuple[int, ...], decision: int) -> None:
    assert decide(seccomp.program(architecture), AUDIT[architecture], number, *arguments) == decision


@pytest.mark.parametrize("architecture", [X86, ARM])
def test_every_refused_call_is_refused_and_those_of_another_architecture_end_the_process(architecture: str) -> None:
    program = seccomp.program(architecture)
    column = [X86, ARM].index(architecture)
    numbers = [both[column] for both in seccomp.REFUSED.values()]
    assert {decide(program, AUDIT[architecture], number) for number in numbers if number is not None} == {EPERM}
    unknown = [both[column] for both in seccomp.UNKNOWN.values()]
    assert {decide(program, AUDIT[architecture], number) for number in unknown} == {ENOSYS}
    assert decide(program, 0x40000003, 11) == KILLED  # i386
    assert len(program) // 8 < 4096  # the kernel's limit


def test_no_number_is_written_twice() -> None:
    for column in (0, 1):
        tables = [*seccomp.REFUSED.values(), *seccomp.UNKNOWN.values()]
        numbers = [both[column] for both in tables if both[column] is not None]
        assert len(numbers) == len(set(numbers))
