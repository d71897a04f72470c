"""Load time of the dashboard with 100 jobs of 2,000 steps each: from opening the address to the last chart.

A real gateway (uvicorn, in its own process) over a real Redis, in which `JobStore.record` has stored every step, and a
real Chromium with an empty cache. Medians over the rounds for each of two pages, the list of jobs and one job:

    painted   first contentful paint, as the browser reports it; has a limit
    drawn     the list's rows and sparklines, or every chart of a job with its whole history, are on the page; has a
              limit
    page      CPU seconds of the page's process until then
    gateway   CPU seconds of the gateway until then

The two CPU times depend less on other load of the machine. The job that is opened also has the heartbeats and weight
updates of three workers, and an event per step: 16,000 more entries.

    python -m benchmarks.dashboard [--seed N] [--out FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headrace_core.redis_access.client import connect
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.browser import Browser, start_chromium
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.gateway_process import gateway
from headrace_lab.services.jobs import Seeded

LIMIT_SECONDS = 1.0
"""PASS: the median of `painted` and of `drawn` is at most this for both pages."""

JOBS, STEPS = 100, 2000
STORED_AT_ONCE = 8
"""Number of jobs that are stored concurrently."""
DRAWN = "performance.getEntriesByName('drawn')[0]?.startTime"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@dataclass(frozen=True)
class PageTimes:
    """Times of one page in one round, in seconds."""

    painted: float
    drawn: float
    page: float
    gateway: float


def opened_job() -> Seeded:
    """The job whose page is opened."""
    return Seeded(0, STEPS, STEPS + 500, workers=3, tells=True)


async def store(url: str) -> float:
    """Store all jobs; returns the seconds it took."""
    began = time.perf_counter()
    waiting = iter([opened_job(), *(Seeded(n, STEPS, STEPS, "succeeded", beats=0) for n in range(1, JOBS))])

    async def storing() -> None:
        async with connect(url) as redis:
            for job in waiting:
                await job.store(redis)

    await asyncio.gather(*(storing() for _ in range(STORED_AT_ONCE)))
    return time.perf_counter() - began


def load_page(browser: Browser, url: str, process: psutil.Process) -> PageTimes:
    """Open a page with an empty cache, and wait until it is drawn."""
    browser.driver.get("about:blank")
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    gateway_before, page_before = cpu_seconds(process), page_seconds(browser)
    browser.open(url)
    drawn, painted = (float(browser.until(mark, timeout=60)) / 1000 for mark in (DRAWN, PAINTED))
    return PageTimes(painted, drawn, page_seconds(browser) - page_before, cpu_seconds(process) - gateway_before)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system CPU seconds of a process since its start."""
    times = process.cpu_times()
    return float(times.user + times.system)


def page_seconds(browser: Browser) -> float:
    """CPU seconds of the page's process since its start."""
    metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime"))


def measure(address: str, process: psutil.Process, folder: Path, rounds: int) -> dict[str, list[PageTimes]]:
    """Times of each page in each round; a first round, which includes the browser's own start, is not counted."""
    pages = {"list": "/", "job": f"/jobs/{opened_job().id}"}
    times: dict[str, list[PageTimes]] = {name: [] for name in pages}
    driver = start_chromium(folder / "profile")
    try:
        browser = Browser(driver, folder)
        driver.execute_cdp_cmd("Performance.enable", {})
        for path in pages.values():
            load_page(browser, address + path, process)
        for _ in range(rounds):
            for name, path in pages.items():
                times[name].append(load_page(browser, address + path, process))
        browser.close()
    finally:
        driver.quit()
    return times


def medians(times: dict[str, list[PageTimes]]) -> dict[str, dict[str, float]]:
    """Median seconds over the rounds, by page and figure."""
    return {
        name: {
            figure: statistics.median(getattr(r, figure) for r in rounds) for figure in PageTimes.__dataclass_fields__
        }
        for name, rounds in times.items()
    }


def main() -> None:
    parser = arguments("dashboard", __doc__)
    parser.add_argument("--rounds", type=int, default=7, help="times that each page is opened")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Store the jobs, measure the pages, report."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        (data := Path(folder) / "data").mkdir()
        server = RedisServer(data)
        server.start()
        try:
            stored = asyncio.run(store(server.url))
            print(f"{JOBS} jobs of {STEPS} steps stored in {stored:.0f} s", flush=True)
            with gateway(server.url, data) as (address, process):
                times = measure(address, process, Path(folder), options.rounds)
        finally:
            server.stop()
    seconds = medians(times)
    passed = all(page[figure] <= LIMIT_SECONDS for page in seconds.values() for figure in ("painted", "drawn"))
    figures = ", ".join(f"{n} {', '.join(f'{f} {s:.2f} s' for f, s in page.items())}" for n, page in seconds.items())
    result: dict[str, Any] = {"limit_seconds": LIMIT_SECONDS, "jobs": JOBS, "steps": STEPS, "seconds": seconds}
    result |= {"rounds": {n: [vars(r) for r in rounds] for n, rounds in times.items()}, "load_before": load}
    report("dashboard", passed, f"{figures}; limit {LIMIT_SECONDS:.0f} s until drawn", result, options)


if __name__ == "__main__":
    main()
