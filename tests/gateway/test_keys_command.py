"""`headrace keys`: on the data folder, whether a server runs there or not; the key is printed once, alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from headrace_core.config.service_settings import Settings
from headrace_core.errors import HeadraceError, InvalidRequest, NotFound, Unavailable
from headrace_gateway.cli import main
from headrace_gateway.service import data_folder_lock
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.services import command_line

KEY = re.compile(r"hr-[\w-]{43}")


def headrace(*words: str) -> Result:
    result = command_line.headrace(*words, COLUMNS="200")
    if isinstance(result.exception, HeadraceError):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(folder: Path) -> Iterator[RedisServer]:
    """What `headrace serve` holds while it runs."""
    with data_folder_lock.held(folder):
        server = RedisServer(folder / "redis")
        server.start()
        yield server
        server.stop()


def test_the_life_of_a_key_where_no_server_runs(folder: Path) -> None:
    at = ("--data-dir", str(folder))
    with data_folder_lock.held(folder):  # as `headrace serve` made it
        pass
    made = headrace("keys", "create", "--name", "alice", "--expires-in", "90d", *at)
    assert made.exit_code == 0
    assert KEY.fullmatch(made.stdout.strip())
    [key_id] = re.findall(r"key_[0-9a-f]{24}", made.stderr)
    until = time.strftime("%Y-%m-%d", time.localtime(time.time() + 90 * 86_400))
    listed = headrace("keys", "list", *at).stdout
    assert key_id in listed
    assert "alice" in listed
    assert until in listed
    assert "valid" in listed
    assert made.stdout.strip() not in listed
    assert "is revoked" in headrace("keys", "revoke", key_id, *at).stdout
    line = next(line for line in headrace("keys", "list", *at).stdout.splitlines() if key_id in line)
    assert line.split()[-1] == "revoked"
    with data_folder_lock.held(folder):  # it let the folder go
        pass


@pytest.mark.parametrize("words", [("list",), ("revoke", "key_1"), ("create", "--name", "alice")])
def test_a_folder_of_a_mistyped_name_is_not_made(folder: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(Unavailable, match=r"is no data folder of a service: name it with --data-dir"):
        headrace("keys", *words, "--data-dir", str(folder))
    assert not folder.exists()


def test_beside_a_running_server(folder: Path, server: RedisServer) -> None:
    at = ("--data-dir", str(folder))
    headrace("keys", "create", "--name", "root", "--scope", "admin", *at)
    assert "admin" in headrace("keys", "list", *at).stdout
    assert "root" in headrace("keys", "list", "--redis-url", server.url).stdout
    assert server.alive


def test_a_server_that_has_no_redis_yet_is_named(folder: Path) -> None:
    with data_folder_lock.held(folder), pytest.raises(Unavailable, match="try again"):
        headrace("keys", "list", "--data-dir", str(folder))


@pytest.mark.parametrize("time", ["90", "0d", "d", "1y", "-1d", "999999d"])
def test_a_time_that_is_none(folder: Path, time: str) -> None:
    with pytest.raises(InvalidRequest, match="--expires-in"):
        headrace("keys", "create", "--name", "a", f"--expires-in={time}", "--data-dir", str(folder))


def test_a_name_that_is_none_and_a_key_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="--name"):
        headrace("keys", "create", "--name", "a b", "--data-dir", str(folder))
    with data_folder_lock.held(folder):
        pass
    with pytest.raises(NotFound, match="key_none"):
        headrace("keys", "revoke", "key_none", "--data-dir", str(folder))


@pytest.mark.parametrize("url", [None, "redis://:password@redis:6379/0"])
def test_serve_says_how_to_make_the_first_key(url: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(host="0.0.0.0", redis_url=url, data_dir=Path("/srv/headrace"))
    main._announce(settings, "http://0.0.0.0:8000", True)
    assert "keys create" not in capsys.readouterr().out
    main._announce(settings, "http://0.0.0.0:8000", False)
    told = capsys.readouterr().out
    assert "headrace keys create --name you --scope admin" in told
    assert "password" not in told
