"""A private Redis: the program of `redis_program`, on a unix socket that only this user may open, with append-only
files in the data folder. A file there gives the address of the socket.

Invariants: the server dies with the process that started it (parent-death signal), so a kill leaves nothing behind; if
an append-only file ends in the middle of a command, as after a loss of power, all complete commands are read; a file
that is damaged before its end, or missing, is an error that names the file and the remedy.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError

from headrace_core.errors import HeadraceError, TimedOut, Unavailable
from headrace_core.storage.atomic_write import written_whole
from headrace_core.storage.disk_space import require_space
from headrace_core.types.events import CommandLost

from . import aof_check
from .data_folder_lock import START_BYTES
from .part_supervisor import Notice
from .redis_program import Version, executable, version_of
from .socket_folders import LockedFolder

_ADDRESS, _LOG, _LOG_SHOWN = "address", "redis.log", 500
_SOCKET = re.compile(r"unix:///[^\x00-\x1f\x7f\ufffd]{1,107}")
_TRUNCATED = re.compile(r"Truncating the AOF (\S+) at offset (\d+)")
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; kept by exec
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs in a process of its own, because code between fork and exec may hang if the service has threads, as at a
restart."""


def running(folder: Path) -> str:
    """The address of the server that runs on `folder`. Raises `Unavailable`."""
    file = folder / _ADDRESS
    try:
        address = file.read_bytes().decode(errors="replace")
    except FileNotFoundError as error:
        raise Unavailable(f"no Redis runs on {folder} (yet): try again in a moment") from error
    if not _SOCKET.fullmatch(address):
        raise Unavailable(f"{file} is damaged, and names no socket: stop `headrace serve`, and start it again")
    return address


class RedisServer:
    """Started with `start`, reached at `url`, ended with `stop`; kept alive as a `ServicePart`."""

    name = "redis"

    def __init__(self, folder: Path, start_timeout: float = 30.0, memory: int = 0, program: Path | None = None) -> None:
        """`memory`: limit in bytes, beyond which it refuses writes that need more; 0: no limit. `program`: see
        `redis_program.executable`."""
        self._folder = folder
        self._own_program = program
        self._program = Path()
        self.version: Version | None = None
        """Version of the program, after `start`."""
        self._timeout = start_timeout
        self._memory = memory
        self._log_from = 0
        self._socket_folder = LockedFolder("redis")
        self.socket = self._socket_folder.path / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address that `headrace_core.redis_access.client.connect` takes."""
        return f"unix://{self.socket}"

    @property
    def alive(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    async def lost(self) -> str | None:
        status = None if self._process is None else self._process.poll()
        if status is None:
            return None
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    async def restart(self) -> None:
        """See `ServicePart`. Called in the thread that called `start`."""
        self.launch()
        await asyncio.to_thread(self.wait_until_ready)

    def notice(self) -> Notice | None:
        if (cut := self.cut) is None:
            return None
        return f"redis left out the last command, not wholly written: {cut}", CommandLost(self.name, cut)

    def start(self) -> None:
        """Start the server; returns once its files are loaded and it answers. Raises `Damaged` if an append-only file
        cannot be read, `DiskFull` if the disk lacks space, and `Unavailable` with the end of its log for any other
        reason.
        """
        try:
            self._program = executable(self._own_program)
            self.version = version_of(self._program)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with require_space(self._folder, START_BYTES):
                self.launch()
                self.wait_until_ready()
                with written_whole(self._folder / _ADDRESS) as address:
                    address.write_text(self.url)
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start the process; a restart uses the same socket and files. Call it from the thread that lives longest,
        because the server ends with that thread."""
        if self._process is not None:
            self._process.wait(self._timeout)
        aof_check.check(self._folder)
        log = self._folder / _LOG
        self._log_from = log.stat().st_size if log.exists() else 0
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appenddirname": aof_check.FOLDER,
            "appendfilename": aof_check.AOF,
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory": str(self._memory),
            "maxmemory-policy": "noeviction",
            "logfile": str(log),
            "daemonize": "no",
        }
        arguments = [x for k, v in options.items() for x in (f"--{k}", v)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(self._program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not end Redis before its clients
        )

    @property
    def pid(self) -> int:
        """Process id of the server. Raises `Unavailable` before the first start."""
        if self._process is None:
            raise Unavailable("Redis was not started")
        return self._process.pid

    @property
    def cut(self) -> str | None:
        """Where the newest append-only file ended in the middle of a command, which was left out, at the last start.
        None if the file was complete."""
        match = _TRUNCATED.search(self._log_since())
        if match is None:
            return None
        return f"{self._folder / aof_check.FOLDER / match[1]} was cut short after {match[2]} bytes"

    def stop(self) -> None:
        """End the server, with its append-only files complete. Idempotent."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None
        (self._folder / _ADDRESS).unlink(missing_ok=True)
        self._socket_folder.remove()

    def wait_until_ready(self) -> None:
        """Block until the server answers. Raises as `start` does."""
        deadline = time.monotonic() + self._timeout
        client = Redis(unix_socket_path=str(self.socket), socket_timeout=5)
        try:
            while time.monotonic() < deadline:
                if not self.alive:
                    raise self._why_it_ended()
                try:
                    client.ping()
                    return
                except (ConnectionError, BusyLoadingError):
                    time.sleep(0.02)
        finally:
            client.close()
        raise TimedOut(f"Redis did not answer within {self._timeout:.0f} s: {self._log_since()[-_LOG_SHOWN:]}")

    def _why_it_ended(self) -> HeadraceError:
        output = self._log_since()
        damage = aof_check.damage(self._folder, output)
        return damage or Unavailable(f"Redis ended at once: {output[-_LOG_SHOWN:] or 'it wrote no log'}")

    def _log_since(self) -> str:
        """What the server wrote to its log since the last start."""
        log = self._folder / _LOG
        if not log.exists():
            return "it wrote no log"
        with log.open(errors="replace") as lines:
            lines.seek(self._log_from)
            return lines.read()
