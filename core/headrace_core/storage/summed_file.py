"""A new file whose size and CRC-32 are known when it is written: nobody has to read it again to sum it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, TypeAlias

Fingerprint: TypeAlias = tuple[int, int]
"""Size in bytes, CRC-32."""
_READ_BYTES = 1 << 20


class SummedFile:
    """A file that is written from its start to its end; an existing one is replaced."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._size = self._crc = 0

    @property
    def fingerprint(self) -> Fingerprint:
        """Of what was written so far."""
        return self._size, self._crc

    def write(self, part: Any) -> int:
        """Append bytes, or anything with a contiguous buffer. Returns their number."""
        size = memoryview(part).nbytes
        self._file.write(part)
        self._crc = zlib.crc32(part, self._crc)
        self._size += size
        return size

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def flush(self) -> None:
        """Pass what was written to the system."""
        self._file.flush()

    def fileno(self) -> int:
        """The file descriptor, for `os.fsync`."""
        self.flush()
        return self._file.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def fingerprint(file: Path) -> Fingerprint:
    """Of a file on the disk, which is read for it."""
    size = crc = 0
    with file.open("rb") as content:
        while part := content.read(_READ_BYTES):
            size += len(part)
            crc = zlib.crc32(part, crc)
    return size, crc
