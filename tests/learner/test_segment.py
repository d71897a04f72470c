"""A segment holds what it was sealed with, or is seen not to; it has its memory before the first write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from headrace_learner.checkpoints.shm_segment import Header, Segment, check_size, checksum

SIZE = 3 * (1 << 20) + 24
WHO = (1, 4, 1234)


def sealed(path: Path, version: int = 7) -> Segment:
    segment = Segment(path, SIZE)
    generator = torch.Generator().manual_seed(version)
    segment.content.copy_(torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=generator))
    segment.seal(Header(version, *WHO))
    return segment


def test_another_process_finds_what_was_sealed(tmp_path: Path) -> None:
    content = sealed(tmp_path / "s").content
    found = Segment(tmp_path / "s", SIZE)
    assert found.version(*WHO) == 7
    assert torch.equal(found.content, content)


def test_a_new_or_void_one_holds_nothing(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "s", SIZE)
    assert segment.version(*WHO) is None
    sealed(tmp_path / "s").invalidate()
    assert segment.version(*WHO) is None


@pytest.mark.parametrize("at", [0, 4095, 4096, 1 << 20, SIZE + 4095])
def test_any_flipped_bit_is_seen(tmp_path: Path, at: int) -> None:
    """In the header, and in the bytes, the last ones included; what is between the two is nothing."""
    sealed(tmp_path / "s")
    with (tmp_path / "s").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    if at == 4095:
        assert Segment(tmp_path / "s", SIZE).version(*WHO) == 7
        return
    with pytest.raises(ValueError, match="not what was written" if at == 0 else "not those of version 7"):
        Segment(tmp_path / "s", SIZE).version(*WHO)


@pytest.mark.parametrize("who", [(0, 4, 1234), (1, 2, 1234), (1, 4, 1235)])
def test_the_state_of_another_is_refused(tmp_path: Path, who: tuple[int, int, int]) -> None:
    sealed(tmp_path / "s")
    with pytest.raises(ValueError, match="of another model, or of another number of ranks"):
        Segment(tmp_path / "s", SIZE).version(*who)


def test_one_of_another_size_is_refused_by_a_reader_and_made_anew_by_a_writer(tmp_path: Path) -> None:
    sealed(tmp_path / "s")
    os.truncate(tmp_path / "s", 4096 + 8)
    with pytest.raises(ValueError, match="has 4104 bytes"):
        check_size(tmp_path / "s", SIZE)
    assert Segment(tmp_path / "s", SIZE).version(*WHO) is None


def test_its_memory_is_taken_when_it_is_made(tmp_path: Path) -> None:
    Segment(tmp_path / "s", SIZE)
    assert (tmp_path / "s").stat().st_blocks * 512 >= SIZE
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    free = os.statvfs(tmp_path)
    with pytest.raises(OSError, match=r"space|large"):
        Segment(tmp_path / "t", (free.f_bavail * free.f_frsize // 8 + (1 << 40)) * 8)
    assert not (tmp_path / "t").exists()


def test_the_checksum_sees_two_generations_mixed() -> None:
    a, b = torch.zeros(SIZE, dtype=torch.uint8), torch.ones(SIZE, dtype=torch.uint8)
    mixed = torch.cat([a[: SIZE // 2], b[SIZE // 2 :]])
    assert len({checksum(a), checksum(b), checksum(mixed)}) == 3
