"""What other users of the machine may have put where ours is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace_core.storage import private_files


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_files.make(tmp_path / "ours")
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700
    private_files.make(tmp_path / "ours")


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_one_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(mode)
    with pytest.raises(PermissionError, match=r"ours can be written to by other users: remove it, or .*chmod go-w"):
        private_files.make(tmp_path / "ours")


def test_a_link_is_refused_also_to_a_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "ours").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="ours is a link"):
        private_files.make(tmp_path / "ours")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_one_of_another_user_is_refused_and_one_of_roots_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    os.chown(tmp_path / "ours", 54321, 54321)
    with pytest.raises(PermissionError, match="belongs to user 54321, and this process runs as 0"):
        private_files.check(tmp_path / "ours")
    os.chown(tmp_path / "ours", 0, 0)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    private_files.check(tmp_path / "ours")


def test_what_is_not_there_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        private_files.check(tmp_path / "gone")
