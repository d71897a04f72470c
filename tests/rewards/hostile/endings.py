"""Acts that end, or do not let end, the process they run in."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import time
from typing import Any, NoReturn


def exit_now(item: Any) -> NoReturn:
    os._exit(7)


def exit_zero(item: Any) -> NoReturn:
    os._exit(0)


def system_exit(item: Any) -> NoReturn:
    sys.exit(3)


def interrupt(item: Any) -> NoReturn:
    raise KeyboardInterrupt


def kill_itself(item: Any) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def stop_itself(item: Any) -> float:
    os.kill(os.getpid(), signal.SIGSTOP)
    return 1.0


def abort(item: Any) -> NoReturn:
    os.abort()


def segmentation_fault(item: Any) -> bytes:
    return ctypes.string_at(0)


def another_program(item: Any) -> NoReturn:
    # Printed first: the guard ends a process that closed its socket, perhaps before the other program has begun.
    print("soon somebody else", flush=True)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])


def ignore_signals(item: Any) -> float:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGXCPU, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def hang_at_exit(item: Any) -> float:
    @atexit.register
    def forever() -> None:
        while True:
            pass

    return 0.0


class Odd(BaseException):
    pass


def base_exception(item: Any) -> NoReturn:
    raise Odd("neither an Exception")


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


def exception_without_text(item: Any) -> NoReturn:
    raise NoText


class ExitingText(Exception):
    def __str__(self) -> str:  # noqa: PLE0307 - on purpose
        os._exit(9)


def exception_that_exits(item: Any) -> NoReturn:
    raise ExitingText


class EndlessText(Exception):
    def __str__(self) -> str:  # noqa: PLE0307 - on purpose
        while True:
            pass


def exception_that_hangs(item: Any) -> NoReturn:
    raise EndlessText


def exception_with_a_novel(item: Any) -> NoReturn:
    raise RuntimeError("\udcff\n" * 300_000)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.itself = self

    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be pickled")


def exception_not_to_be_pickled(item: Any) -> NoReturn:
    raise Unpicklable
