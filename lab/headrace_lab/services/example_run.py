"""What the example runs have in common: a server, a job that is followed to its end, and its record.

    with server(folder) as address:  `headrace serve` on a free port, with its data in `folder`
        follow(client, job_id, …)    prints the job's events; SystemExit if it fails or takes too long
        fetch(address, job_id)       the record for a report

Every wait has a time limit. The server ends with the block, by Ctrl-C, as a user would end it, and with this process,
however that ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from ..reports.job_report import Record
from .service import Service

PAGE = 10_000
"""Measurements per request."""
ENDED = ("succeeded", "failed", "cancelled")


def connect(address: str) -> OpenAI:
    """OpenAI's client; a server on loopback needs no API key."""
    return OpenAI(base_url=f"{address}/v1", api_key="not-needed-on-loopback", max_retries=2)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Runs `headrace serve` on a free port; yields its address, and ends it by SIGINT."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        service = Service(folder / "data", log=folder / "server.log")
    except AssertionError as error:
        raise SystemExit(str(error)) from error
    try:
        yield service.address
    finally:
        service.stop()


def follow(client: OpenAI, job_id: str, name: str, seconds: float) -> None:
    """Print the job's events until it ends. Raises SystemExit, with a message that begins with `name`, unless it
    succeeds within `seconds`."""
    seen: set[str] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = client.fine_tuning.jobs.retrieve(job_id).status
        events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
        for event in reversed(events):
            if event.id not in seen:
                seen.add(event.id)
                print(f"  {time.strftime('%H:%M:%S', time.localtime(event.created_at))}  {event.message}", flush=True)
        if status == "paused":  # by itself: nobody else works on this service
            raise SystemExit(f"{name}: the job is paused; its last event says why")
        if status in ENDED:
            if status != "succeeded":
                raise SystemExit(f"{name}: the job {status}")
            return
        time.sleep(0.5)
    raise SystemExit(f"{name}: the job did not end within {seconds:g} s")


def fetch(address: str, job_id: str) -> Record:
    """The job's record, for a report."""
    base = f"{address}/v1/fine_tuning/jobs/{job_id}"
    with httpx.Client(timeout=60) as http:
        job, ledger, reward = (http.get(base + route).raise_for_status().json() for route in ("", "/ledger", "/reward"))
        return Record(job, ledger, list(_measurements(http, base)), reward)


def _measurements(http: httpx.Client, base: str) -> Iterator[dict[str, Any]]:
    """All measurements, page by page, oldest first."""
    parameters: dict[str, Any] = {"limit": PAGE}
    while True:
        page = http.get(f"{base}/metrics", params=parameters).raise_for_status().json()
        yield from page["data"]
        if not page["has_more"]:
            return
        parameters["after"] = page["data"][-1]["id"]
