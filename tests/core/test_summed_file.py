"""A file's size and checksum, summed while it is written, are those of the file on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace_core.storage.summed_file import SummedFile, fingerprint


@pytest.mark.parametrize("sizes", [(), (0,), (1, 0, 5), (3 << 20, 1, 1 << 20)])
def test_what_is_summed_is_what_is_read(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    chance = np.random.default_rng(0)
    parts = [chance.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    file = SummedFile(tmp_path / "f")
    for number, part in enumerate(parts):
        assert file.write(part if number % 2 else part.tobytes()) == len(part)
    assert file.tell() == sum(sizes)
    file.close()
    file.close()
    assert file.fingerprint == fingerprint(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"".join(part.tobytes() for part in parts)


def test_a_buffer_of_other_numbers_counts_in_bytes(tmp_path: Path) -> None:
    file = SummedFile(tmp_path / "f")
    assert file.write(np.arange(10, dtype=np.float32)) == 40
    file.close()
    assert file.fingerprint == fingerprint(tmp_path / "f")
