"""The gateway of `gateway.py`, alone on its core: the app as it is served, over a Redis that is there, without Ray.

    python benchmarks/_gateway_process.py REDIS_URL DATA_DIR CORE

Prints its port once it listens; ends with its standard input, so also when the benchmark is killed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import uvloop

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import Job
from headrace_gateway import allocator
from headrace_gateway.app import create_app
from headrace_gateway.service.serve import HttpServer


class NoControllers:
    """Stands where Ray is: the benchmark plays the job."""

    async def ensure(self, job: Job) -> None: ...
    async def cancel(self, job_id: str) -> None: ...
    async def reconcile(self) -> None: ...
    async def ping(self) -> None: ...
    async def suspend(self) -> None: ...
    async def close(self) -> None: ...


async def serve(redis_url: str, data_dir: Path) -> None:
    server = HttpServer(create_app(Settings(data_dir=data_dir), redis_url, NoControllers()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().add_reader(sys.stdin, lambda: setattr(server, "should_exit", True))
        print(listener.getsockname()[1], flush=True)
        await serving


if __name__ == "__main__":
    allocator.bound()
    os.sched_setaffinity(0, {int(sys.argv[3])})
    uvloop.run(serve(sys.argv[1], Path(sys.argv[2])))
