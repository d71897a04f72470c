"""One generation of a snapshot: a file in shared memory that survives the process that wrote it.

    page 0    header: version, ranks, layout, checksum of the bytes; written last and erased first
    page 1…   the bytes

Invariants: if a segment has a valid header but not the bytes that it was sealed with, reading it raises; its memory is
reserved when the file is made, so that a write to it never meets a full file system (which would be a SIGBUS).

The checksum is the CRC-32 of sums of the bytes' 64-bit words, one sum per MiB. It is 20 times faster than a CRC-32 of
the bytes, so that it costs a step little, and still detects any flipped bit and the mixed bytes of two writers.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace_core.storage import private_files

WORD = 8
"""The size of a segment's content is a multiple of this many bytes."""
_PAGE = 4096
_MAGIC = b"HEADRACE"
_HEADER = struct.Struct("<8sqqIIIII")
_MIB_WORDS = (1 << 20) // WORD


class Header(NamedTuple):
    """Describes the content of a segment."""

    version: int
    """The policy version of the state."""
    rank: int
    ranks: int
    layout: int
    """CRC-32 of the shapes and dtypes of the tensors in it, in order."""


class Segment:
    """A memory-mapped file in shared memory."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the segment of `size` bytes, a multiple of `WORD`; a missing one or one of another size is made anew.

        Raises `OSError` if there is not enough memory.
        """
        self.path, self._size = path, size
        private_files.make(path.parent)  # every user of the machine can write to shared memory
        if not path.exists() or path.stat().st_size != _PAGE + size:
            path.unlink(missing_ok=True)
            _reserve(path, _PAGE + size)
        private_files.check(path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _PAGE + size)
        self.content: Tensor = torch.frombuffer(self._map, dtype=torch.uint8, offset=_PAGE, count=size)
        """uint8 [size], in shared memory."""

    def invalidate(self) -> None:
        """Erase the header: the segment holds no snapshot until it is sealed."""
        self._map[: _HEADER.size] = bytes(_HEADER.size)

    def seal(self, header: Header) -> None:
        """Write the header: the segment holds the snapshot that is now in `content`."""
        fields = (_MAGIC, header.version, self._size, header.rank, header.ranks, header.layout)
        packed = _HEADER.pack(*fields, checksum(self.content), 0)
        self._map[: _HEADER.size] = packed[:-4] + struct.pack("<I", zlib.crc32(packed[:-4]))

    def version(self, rank: int, ranks: int, layout: int) -> int | None:
        """The policy version of the snapshot in it; None if there is none.

        Raises `ValueError` if it is damaged, or if its rank, number of ranks or layout differ from those given.
        """
        packed = self._map[: _HEADER.size]
        if packed == bytes(_HEADER.size):
            return None
        magic, version, size, *origin, content_sum, header_sum = _HEADER.unpack(packed)
        if magic != _MAGIC or zlib.crc32(packed[:-4]) != header_sum:
            raise ValueError("its header is not what was written")
        if size != self._size or origin != [rank, ranks, layout]:
            raise ValueError("it is the state of another model, or of another number of ranks")
        if checksum(self.content) != content_sum:
            raise ValueError(f"its bytes are not those of version {version}")
        return int(version)


def check_size(path: Path, size: int) -> None:
    """Raises `ValueError` if the file is not that of a segment with `size` bytes of content."""
    if (actual := path.stat().st_size) != _PAGE + size:
        raise ValueError(f"it has {actual} bytes and not {_PAGE + size}")


def checksum(content: Tensor) -> int:
    """Checksum of uint8 [n], n a multiple of `WORD`: the CRC-32 of one 64-bit sum per MiB (see above)."""
    words = content.numpy().view(np.uint64)
    full = len(words) // _MIB_WORDS * _MIB_WORDS  # words in full MiB; the rest gets a sum of its own
    sums = words[:full].reshape(-1, _MIB_WORDS).sum(axis=1, dtype=np.uint64)
    rest = words[full:].sum(dtype=np.uint64, keepdims=True)
    return zlib.crc32(rest.tobytes(), zlib.crc32(sums.tobytes()))


def _reserve(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
