"""Scratch folders outlive their makers for no longer than until the next one is made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from headrace_rewards.sandbox.scratch import ScratchFolder

MAKE_ONE = """
import sys
from headrace_rewards.sandbox.scratch import ScratchFolder
folder = ScratchFolder()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder: Path) -> Path:
    """As if it had been made a while ago."""
    old = time.time() - 3600
    os.utime(folder, (old, old))
    return folder


def test_of_those_left_by_the_killed_none_stays_and_of_the_living_every_one(root: Path) -> None:
    """In a namespace nobody but its maker can remove the folder: one that was killed left it, empty, for ever."""
    environment = os.environ | {"TMPDIR": str(root)}
    command = [sys.executable, "-c", MAKE_ONE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as maker:
        assert maker.stdout is not None
        theirs = aged(Path(maker.stdout.readline().strip()))
        foreign = aged(Path(tempfile.mkdtemp(prefix="another-")))
        first = ScratchFolder()
        assert set(root.iterdir()) == {theirs, first.path, foreign}
        (theirs / "deep" / "er").mkdir(parents=True)
        aged(theirs)
        maker.kill()
    aged(first.path)
    second = ScratchFolder()
    assert set(root.iterdir()) == {first.path, second.path, foreign}
    for folder in (first, second, second):
        folder.remove()
    assert set(root.iterdir()) == {foreign}


def test_one_that_may_not_be_locked_yet_stays_and_no_link_is_followed(root: Path) -> None:
    young = Path(tempfile.mkdtemp(prefix="headrace-reward-"))
    kept = root / "kept"
    kept.mkdir()
    aged(kept)
    (root / "headrace-reward-link").symlink_to(kept)
    mine = ScratchFolder()
    assert set(root.iterdir()) == {young, kept, root / "headrace-reward-link", mine.path}
    aged(young)
    ScratchFolder().remove()
    assert not young.exists()
    mine.remove()
