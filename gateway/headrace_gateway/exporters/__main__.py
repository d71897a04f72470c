"""`python -m headrace_gateway.exporters`: one job into one sink, as a line on standard input says.

A process of its own: what a sink's library does, and how long it takes, is neither the gateway's nor the job's. It ends
with the job, and in good order when its standard input does: when the gateway closes it, or dies. Status 1 with a line
on standard error that says why.
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


async def run(errand: ExportRequest) -> None:
    """To the job's end, or to that of standard input."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)  # nothing comes there any more but its end
    redis = connect(errand.redis_url)
    try:
        jobs = JobStore(redis)
        found = await jobs.get(errand.job_id)
        job = {name: getattr(found, name) for name in ("id", "created_at", "model", "hyperparameters")}
        source = FromRedis(jobs, errand.job_id)
        with require_space(Path(errand.folder)):
            await export(source, errand.target, Path(errand.folder), job, errand.options, follow=True, stop=stop)
    finally:
        await redis.aclose()


def main() -> None:
    redact_streams()
    errand = msgspec.json.decode(sys.stdin.buffer.readline(), type=ExportRequest)
    try:
        asyncio.run(run(errand))
    except Exception as error:  # the last line is what the job's owner is told
        text = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        print(" ".join(text.split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
