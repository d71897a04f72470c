"""`python -m headrace_gateway.exporters`: exports one job to one sink; a line on stdin holds the `ExportRequest`.

It is a process of its own, so that a sink's library can neither block nor break the gateway or the job. It ends with
the job, or in good order when stdin is closed, because the gateway closes it or has died. On an error it exits with
status 1 and one line on stderr.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from headrace_core.errors import HeadraceError
from headrace_core.jobs.job_store import JobStore
from headrace_core.logs import redact_streams
from headrace_core.redis_access.client import connect
from headrace_core.storage.disk_space import require_space

from .export_loop import ExportRequest, FromRedis, export


async def run(request: ExportRequest) -> None:
    """Export until the job ends, or stdin is closed."""
    stop = asyncio.Event()
    # after the request, only the end of stdin can follow
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    redis = connect(request.redis_url)
    try:
        jobs = JobStore(redis)
        record = await jobs.get(request.job_id)
        job = {name: getattr(record, name) for name in ("id", "created_at", "model", "hyperparameters")}
        source = FromRedis(jobs, request.job_id)
        with require_space(Path(request.folder)):
            await export(source, request.target, Path(request.folder), job, request.options, follow=True, stop=stop)
    finally:
        await redis.aclose()


def main() -> None:
    redact_streams()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=ExportRequest)
    try:
        asyncio.run(run(request))
    except Exception as error:  # the gateway reports the last line of stderr to the job's owner
        text = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        print(" ".join(text.split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
