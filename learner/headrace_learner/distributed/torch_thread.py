"""The thread of a learner process in which torch runs, and the memory allocator's settings for it."""

from __future__ import annotations

import ctypes
import platform
from concurrent.futures import ThreadPoolExecutor

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt, from glibc's malloc.h."""


def torch_thread(threads: int) -> ThreadPoolExecutor:
    """One worker thread; matrix products inside it use `threads` threads."""
    keep_freed_memory()
    return ThreadPoolExecutor(1, "torch", torch.set_num_threads, (threads,))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next array, from here on. Does nothing with other C libraries.

    By default glibc returns each large array to the system, and the next one costs a page fault for every 4 KiB: 15 %
    of a step of a 135M model on a CPU. Each step needs the same arrays, so that the peak hardly grows (2 % there).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
