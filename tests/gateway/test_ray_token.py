"""The token of the embedded Ray is its user's alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace_core.errors import Unavailable
from headrace_gateway.service import ray_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_made_for_this_user_alone_and_stays(home: Path) -> None:
    ray_token.keep_private()
    token = home / ".ray" / "auth_token"
    made = token.read_text()
    assert (mode(token), mode(token.parent), len(made)) == (0o600, 0o700, 64)
    ray_token.keep_private()
    assert token.read_text() == made
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_one_that_others_can_read_is_closed_to_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("of before")
    token.chmod(0o644)
    ray_token.keep_private()
    assert (mode(token), token.read_text()) == (0o600, "of before")
    own = home / "own"
    own.write_text("mine")
    own.chmod(0o664)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(own))
    ray_token.keep_private()
    assert (mode(own), own.read_text()) == (0o600, "mine")


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another user, which root alone can")
@pytest.mark.parametrize("permissions", [0o600, 0o644])
def test_one_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, permissions: int) -> None:
    theirs = home / "theirs"
    theirs.write_text("theirs")
    theirs.chmod(permissions)
    os.chown(theirs, 12345, 12345)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(theirs))
    with pytest.raises(Unavailable, match="belongs to user 12345"):
        ray_token.keep_private()
    assert mode(theirs) == permissions, "what is not ours stays as it is"


@pytest.mark.parametrize(("permissions", "taken"), [(0o640, True), (0o600, True), (0o644, False)])
def test_the_administrators_is_taken_where_nobody_else_can_read_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, permissions: int, taken: bool
) -> None:
    theirs = home / "mounted"
    theirs.write_text("a secret that the cluster mounts")
    theirs.chmod(permissions)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(theirs))
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    if os.stat(theirs).st_uid != 0:
        pytest.skip("its owner is no administrator")
    if taken:
        ray_token.keep_private()
    else:
        with pytest.raises(Unavailable, match="belongs to user 0, and others can read it"):
            ray_token.keep_private()
    assert mode(theirs) == permissions


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "abc")])
def test_none_is_made_where_none_is_read(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    ray_token.keep_private()
    assert not (home / ".ray").exists()


def test_a_home_where_none_can_be_made_is_an_error_that_says_what_to_set(home: Path) -> None:
    (home / ".ray").write_text("a file")
    with pytest.raises(Unavailable, match="RAY_AUTH_TOKEN_PATH"):
        ray_token.keep_private()
