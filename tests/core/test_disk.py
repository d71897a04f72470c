"""A disk that is full: named with folder and bytes, before the write where it can be known, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_core.errors import DiskFull
from headrace_core.storage.disk_space import check_space, require_space
from headrace_core.storage.weight_store import WeightStore


def test_what_does_not_fit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    wanted = 1 << 60
    with pytest.raises(
        DiskFull, match=rf"no room in {tmp_path}: {wanted:,} bytes are needed, [\d,]+ are free"
    ) as error:
        check_space(tmp_path, wanted)
    assert error.value.code == "disk_full"


def test_the_error_of_a_device_that_becomes_full_gets_its_name(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=str(tmp_path)), require_space(tmp_path), open("/dev/full", "w") as full:
        full.write("x")


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "something else"])
def test_a_library_that_keeps_the_number_to_itself_is_understood(tmp_path: Path, text: str) -> None:
    expected = DiskFull if "space" in text else RuntimeError
    with pytest.raises(expected), require_space(tmp_path):
        raise RuntimeError(text)


def test_a_full_weight_store_keeps_what_it_had_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    store = WeightStore(small_disk, "ftjob-a", keep=2)

    def write(size: int) -> Callable[[Path], None]:
        def into(folder: Path) -> None:
            (folder / "model.safetensors").write_bytes(os.urandom(size))

        return into

    first = store.publish(1, 1, write(300_000))
    with pytest.raises(DiskFull, match=str(small_disk)):
        store.publish(2, 1, write(900_000))  # found while it is written
    store.publish(2, 1, write(400_000))
    with pytest.raises(DiskFull, match="400,0"):
        store.publish(3, 1, write(10))  # refused before, by the size of the last
    assert store.versions() == ["v00000001-t1", "v00000002-t1"]
    assert store.open(first.name)
    assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == [], "a part of it was left"
    (small_disk / "ftjob-a" / first.name).rename(small_disk / "gone")
    for file in (small_disk / "gone").iterdir():
        file.unlink()
    assert store.publish(3, 1, write(10)).version == 3
