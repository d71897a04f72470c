"""Folders for sockets outlive no process for long: not even one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_gateway.service import socket_folders
from headrace_gateway.service.socket_folders import LockedFolder

MAKE_ONE = """
import sys
from pathlib import Path
from headrace_gateway.service import socket_folders
socket_folders._ROOT = Path(sys.argv[1])
folder = socket_folders.LockedFolder("test")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(socket_folders, "_ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def other(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """(another process, the folder that it holds)"""
    command = [sys.executable, "-c", MAKE_ONE, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_one_is_held_until_it_is_removed(root: Path) -> None:
    first, second = LockedFolder("test"), LockedFolder("test")
    assert first.path.is_dir(), "the second left it alone"
    assert (second.path / "held").read_text() == f"{os.getpid()}\n"
    assert second.path.stat().st_mode & 0o777 == 0o700
    for folder in (first, second, second):
        folder.remove()
    assert list(root.iterdir()) == []


def test_that_of_a_process_that_was_killed_is_removed_by_the_next(other: tuple[subprocess.Popen[str], Path]) -> None:
    process, its = other
    (its / "session").mkdir()
    LockedFolder("test").remove()
    assert its.is_dir(), "its process lives"
    process.kill()
    process.wait(10)
    LockedFolder("another").remove()
    assert its.is_dir(), "of another kind"
    LockedFolder("test").remove()
    assert not its.exists()


def test_what_was_not_made_by_us_is_left_alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "held").touch()
    (root / "headrace-test-link").symlink_to(elsewhere)
    (root / "headrace-test-empty").mkdir()
    (root / "headrace-test-file").touch()
    LockedFolder("test").remove()
    assert (elsewhere / "held").exists()
    assert (root / "headrace-test-empty").is_dir()
    assert (root / "headrace-test-file").exists()
