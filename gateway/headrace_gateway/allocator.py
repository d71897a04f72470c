"""glibc's allocator, told to give back what a request took: by itself it keeps the most that was ever in use.

    arenas         one for each thread, by default up to eight a core, each with free pieces of its own: here two
    large blocks   mapped one by one, and unmapped when freed; by default only until the first is freed, since the bound
                   from which on a block is mapped then grows to its size: here it stays
    the rest       `trim` gives back whole free pages, wherever they lie

Without glibc nothing of this is done, nor needed in this form.
"""

from __future__ import annotations

import ctypes

ARENAS = 2
MAPPED_BYTES = 256 * 1024
"""From this size on a block is mapped by itself."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def bound() -> bool:
    """Set it up for this process, before its threads start. Whether the allocator knows how."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MAPPED_BYTES), (_M_TRIM_THRESHOLD, 2 * MAPPED_BYTES))
    set_up = [mallopt(option, value) == 1 for option, value in options]  # all of them, whatever one says
    return all(set_up)


def trim() -> None:
    """Give back what is free; takes some milliseconds for each 100 MB."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
