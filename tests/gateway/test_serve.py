"""`headrace serve` as a user starts it: nothing is left behind, and everything is there again next time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from headrace_core.config.service_settings import Settings
from headrace_core.errors import DiskFull, InvalidState, Unavailable
from headrace_gateway.service import data_folder_lock
from headrace_gateway.service.serve import serve
from headrace_lab.faults.small_disks import fill
from headrace_lab.waiting import wait_until

from .conftest import rows, upload

HEADRACE = Path(sys.executable).with_name("headrace")
START_SECONDS, STOP_SECONDS = 120, 60


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def shared_memory() -> set[str]:
    """Segments that no process has mapped or open: tests that run beside these have some in use."""
    held = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            held |= {area.path.removesuffix(" (deleted)") for area in process.memory_maps(grouped=True)}
            held |= {file.path for file in process.open_files()}
    found = {name for name in os.listdir("/dev/shm") if not name.startswith("headrace-")}
    return {name for name in found if f"/dev/shm/{name}" not in held}


@contextmanager
def started(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of a server on `folder`, stopped by SIGINT; checks that nothing of it is left."""
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        server = subprocess.Popen(
            [HEADRACE, "serve", "--port", "0", "--data-dir", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        addresses: list[str] = []

        def is_up() -> bool:
            assert server.poll() is None, log.read_text()
            addresses[:] = re.findall(r"http://[\d.:]+", log.read_text())
            return bool(addresses)

        wait_until(is_up, lambda: f"the server has started: {log.read_text()}", START_SECONDS)
        process = psutil.Process(server.pid)
        yield addresses[0], process
        everyone = tree(process)
        server.send_signal(signal.SIGINT)
        assert server.wait(STOP_SECONDS) == 0, log.read_text()
        gone, left = psutil.wait_procs(everyone, timeout=10)
        assert not left
        assert len(gone) > 3  # Redis and Ray were among them
    finally:
        if server.poll() is None:
            server.kill()
            server.wait(STOP_SECONDS)


def kill_redis_and_await_another(server: psutil.Process, url: str) -> None:
    (redis,) = [p for p in server.children() if p.name() == "valkey-server"]
    redis.kill()

    def is_back() -> bool:
        answer = httpx.get(f"{url}/v1/files", timeout=30)
        if answer.status_code == 503:
            assert "Redis" in answer.json()["error"]["message"]
            return False
        answer.raise_for_status()
        return True

    wait_until(is_back, "the server has started Redis again", START_SECONDS)


@pytest.mark.e2e
def test_starts_refuses_a_second_stops_clean_and_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    memory = shared_memory()
    with started(folder) as (url, process):
        assert httpx.get(f"{url}/readyz", timeout=30).json() == {"status": "ready"}
        file_id = httpx.post(f"{url}/v1/files", **upload(rows(2))).json()["id"]

        listening = [c for p in tree(process) for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}

        with pytest.raises(InvalidState, match=str(process.pid)):
            serve(Settings(data_dir=folder, port=0), lambda *_: None)
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(Unavailable, match=f"port {port}"):
            serve(Settings(data_dir=tmp_path / "other", port=port), lambda *_: None)
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert shared_memory() <= memory
    with started(folder) as (url, process):
        kill_redis_and_await_another(process, url)
        assert [f["id"] for f in httpx.get(f"{url}/v1/files").json()["data"]] == [file_id]
        assert httpx.get(f"{url}/v1/files/{file_id}/content").content == rows(2)


def test_what_is_kept_in_the_data_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with data_folder_lock.held(tmp_path / "new"), data_folder_lock.held(tmp_path):
            made = [tmp_path / "new", *(tmp_path / name for name in ("files", "jobs", "redis"))]
            assert [oct(folder.stat().st_mode & 0o777) for folder in made] == ["0o700"] * 4
    finally:
        os.umask(before)


def test_a_data_folder_without_room_is_named_and_can_be_held_when_there_is_some(small_disk: Path) -> None:
    folder = small_disk / "data"
    in_the_way = fill(small_disk, 0)
    for _ in range(2):
        with pytest.raises(DiskFull, match=f"no room in {folder}: "), data_folder_lock.held(folder):
            pass
    in_the_way.unlink()
    with data_folder_lock.held(folder):
        assert (folder / "headrace.lock").read_text() == str(os.getpid())


def test_a_data_folder_is_free_again_when_its_holder_ends(tmp_path: Path) -> None:
    for _ in range(2):
        with data_folder_lock.held(tmp_path):
            with pytest.raises(InvalidState, match="--data-dir"), data_folder_lock.held(tmp_path):
                pass
            assert (tmp_path / "headrace.lock").read_text() == str(os.getpid())
