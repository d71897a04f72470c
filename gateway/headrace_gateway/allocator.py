"""Configures glibc's allocator to return memory to the system after a request. By default it keeps nearly all memory
that was ever in use.

    arenas         by default up to eight per core, each with its own free memory; here one. `malloc_trim` does not give
                   back the end of any arena but the first, so a second could keep up to 64 MB; and threads seldom
                   allocate side by side under Python's lock
    large blocks   mapped singly, and unmapped when freed. By default the threshold for this grows to the size of each
                   block that is freed; here it is fixed
    the rest       `trim` returns free pages to the system

Without glibc this does nothing.
"""

from __future__ import annotations

import ctypes

ARENAS = 1
MAPPED_BYTES = 256 * 1024
"""Blocks of this size or more are mapped singly."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def configure() -> bool:
    """Configure this process's allocator; call it before threads start. Whether the allocator supports it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MAPPED_BYTES), (_M_TRIM_THRESHOLD, 2 * MAPPED_BYTES))
    set_up = [mallopt(option, value) == 1 for option, value in options]  # a list, so that all are set even if one fails
    return all(set_up)


def trim() -> None:
    """Return free memory to the system; takes some milliseconds per 100 MB."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
