"""What is written beside its place appears there whole; an error leaves what was there before, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace_core.storage.atomic_write import MANIFEST, Manifest, remove, written_whole


def test_a_file_replaces_the_one_before_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "cursor.json"
    final.write_text("old")
    with written_whole(final) as file:
        file.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_nothing_of_it(kind: str, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        if kind == "folder":
            path.mkdir()
            path = path / "weights"
        path.write_text("half")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), written_whole(tmp_path / "model") as partial:
        write(partial)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_not_mixed_with_what_is_written_next(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "stale").touch()
    with written_whole(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "fresh").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["fresh"]


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "kept").touch()
    with pytest.raises(OSError, match="not empty"), written_whole(tmp_path / "model") as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_removal_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("raw", [b'{"version":-1,"files":{"a":1}}', b'{"version":1,"files":{}}', b'{"version":1}'])
def test_a_manifest_names_a_version_and_at_least_one_file(raw: bytes, tmp_path: Path) -> None:
    Manifest(3, {"state/0": (5, 12)}).write(tmp_path)
    written = msgspec.json.decode((tmp_path / MANIFEST).read_bytes(), type=Manifest[tuple[int, int]])
    assert written == Manifest(3, {"state/0": (5, 12)})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=Manifest[int])
