"""Writes a rank's shards with torch.distributed.checkpoint, and sums them while they are written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from headrace_core.storage.summed_file import Fingerprint, SummedFile

from ..distributed.process_group import ProcessGroup


class _SummingFileSystem(FileSystem):
    """The local file system; knows the fingerprint of each file that was written through it."""

    def __init__(self) -> None:
        self.fingerprints: dict[str, Fingerprint] = {}
        """By file name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """A new file, opened for writing."""
        if mode != "wb":
            raise ValueError(f"a shard is written from its start to its end, not opened as {mode!r}")
        file = SummedFile(Path(path))
        try:
            yield cast(io.IOBase, file)
            self.fingerprints[Path(path).name] = file.fingerprint
        finally:
            file.close()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Rename a file that was written."""
        super().rename(path, new_path)
        self.fingerprints[Path(new_path).name] = self.fingerprints.pop(Path(path).name)


class ShardWriter(FileSystemWriter):
    """Writes one file for each rank, synced to disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, single_file_per_rank=True, thread_count=1)
        self.fs = self._files = _SummingFileSystem()

    def fingerprints(self, ranks: ProcessGroup, device: torch.device) -> dict[str, Fingerprint]:
        """Of all ranks' files, by name within the folder; call it on all ranks, after the save.

        `device` is where the ranks' collectives take their tensors.
        """
        found = dict(self._files.fingerprints)
        own = _shard_of(ranks.index)
        written_R3 = torch.zeros(ranks.size, 3, dtype=torch.int64, device=device)
        if own in found:
            written_R3[ranks.index] = torch.tensor([1, *found[own]])
        for rank, (is_written, size, crc) in enumerate(ranks.sum(written_R3).tolist()):
            if is_written:
                found[_shard_of(rank)] = size, crc
        return found


def _shard_of(rank: int) -> str:
    """The name that torch gives to the only file of a rank."""
    return f"__{rank}_0.distcp"
