"""The gateway alone in a process: the real app on an existing Redis, without Ray.

    python -m headrace_lab.services.gateway_process REDIS_URL DATA_DIR CORES

It prints its port once it listens, and ends when its stdin is closed, so also when its parent is killed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import uvloop

from headrace_core.config.service_settings import Settings
from headrace_core.types.job import Job
from headrace_gateway import allocator
from headrace_gateway.app import create_app
from headrace_gateway.service.serve import HttpServer

START_SECONDS = 60


class NoControllers:
    """A controller manager that starts no controllers: tests write the jobs' data themselves."""

    async def ensure(self, job: Job) -> None: ...
    async def cancel(self, job_id: str) -> None: ...
    async def reconcile(self) -> None: ...
    async def ping(self) -> None: ...
    async def suspend(self) -> None: ...
    async def close(self) -> None: ...


@contextmanager
def gateway(
    redis_url: str, data_dir: Path, cores: set[int] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, psutil.Process]]:
    """Runs the gateway on `cores` (default: all); yields (address, process). Raises RuntimeError if it does not
    start."""
    words = (redis_url, str(data_dir), ",".join(map(str, cores or os.sched_getaffinity(0))))
    command = [sys.executable, "-m", "headrace_lab.services.gateway_process", *words]
    environ = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("the gateway did not start")
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.stdin.close()
            process.wait(START_SECONDS)


async def _serve(redis_url: str, data_dir: Path) -> None:
    server = HttpServer(create_app(Settings(data_dir=data_dir), redis_url, NoControllers()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)

        def stop() -> None:
            server.should_exit = True

        asyncio.get_running_loop().add_reader(sys.stdin, stop)
        print(listener.getsockname()[1], flush=True)
        await serving


if __name__ == "__main__":
    allocator.configure()
    os.sched_setaffinity(0, {int(core) for core in sys.argv[3].split(",")})
    uvloop.run(_serve(sys.argv[1], Path(sys.argv[2])))
