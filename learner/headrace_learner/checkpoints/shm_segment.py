"""One generation of a snapshot: bytes in shared memory that outlive the process that wrote them.

    page 0    header: version, ranks, layout, checksum of the bytes; written last, and taken away first
    page 1…   the bytes

Invariants: a segment whose header is whole holds exactly the bytes that it was sealed with, or is seen not to; its
memory is reserved when it is made, so that a write to it never meets a full file system (which would be a SIGBUS).

The checksum is the CRC-32 of the sums of the bytes' 64-bit words, one sum a MiB: 20 times faster than a CRC-32 of the
bytes, so that it costs a step little, and it misses no flipped bit and no two writers.
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
"""Bytes are a multiple of it."""
_PAGE = 4096
_MAGIC = b"HEADRACE"
_HEADER = struct.Struct("<8sqqIIIII")
_MIB_WORDS = (1 << 20) // WORD


class Header(NamedTuple):
    """What the bytes of a segment are."""

    version: int
    """The policy version of the state."""
    rank: int
    ranks: int
    layout: int
    """CRC-32 of names, shapes and types of what is in it, in order."""


class Segment:
    """A file of shared memory, mapped."""

    def __init__(self, path: Path, size: int) -> None:
        """`size` bytes, a multiple of `WORD`. One that is there with this size is taken as it is, else made anew.

        Raises `OSError` where there is no room.
        """
        self.path, self._size = path, size
        private_files.make(path.parent)  # shared memory is everybody's
        if not path.exists() or path.stat().st_size != _PAGE + size:
            path.unlink(missing_ok=True)
            _reserve(path, _PAGE + size)
        private_files.check(path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _PAGE + size)
        self.content: Tensor = torch.frombuffer(self._map, dtype=torch.uint8, offset=_PAGE, count=size)
        """uint8 [size], in shared memory."""

    def invalidate(self) -> None:
        """From here on it holds nothing."""
        self._map[: _HEADER.size] = bytes(_HEADER.size)

    def seal(self, header: Header) -> None:
        """From here on it holds what was written."""
        fields = (_MAGIC, header.version, self._size, header.rank, header.ranks, header.layout)
        packed = _HEADER.pack(*fields, checksum(self.content), 0)
        self._map[: _HEADER.size] = packed[:-4] + struct.pack("<I", zlib.crc32(packed[:-4]))

    def version(self, rank: int, ranks: int, layout: int) -> int | None:
        """The policy version that it holds; None for nothing. Raises `ValueError` where it is damaged or another's."""
        packed = self._map[: _HEADER.size]
        if packed == bytes(_HEADER.size):
            return None
        magic, version, size, *whose, expected, of_header = _HEADER.unpack(packed)
        if magic != _MAGIC or zlib.crc32(packed[:-4]) != of_header:
            raise ValueError("its header is not what was written")
        if size != self._size or whose != [rank, ranks, layout]:
            raise ValueError("it is the state of another model, or of another number of ranks")
        if checksum(self.content) != expected:
            raise ValueError(f"its bytes are not those of version {version}")
        return int(version)


def check_size(path: Path, size: int) -> None:
    """Raises `ValueError` where it is not a segment of `size` bytes."""
    if (found := path.stat().st_size) != _PAGE + size:
        raise ValueError(f"it has {found} bytes and not {_PAGE + size}")


def checksum(content: Tensor) -> int:
    """Of uint8 [n], n a multiple of `WORD`."""
    words = content.numpy().view(np.uint64)
    whole = len(words) // _MIB_WORDS * _MIB_WORDS
    sums = words[:whole].reshape(-1, _MIB_WORDS).sum(axis=1, dtype=np.uint64)
    rest = words[whole:].sum(dtype=np.uint64, keepdims=True)
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
