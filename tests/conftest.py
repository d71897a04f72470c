"""What all tests share: the two tiers, the end of every process that they start, and one real Redis a session.

A test is slow by its folder, by what it starts (markers `vllm` and `e2e`) or by the marker `slow`; `fast` overrides
these. The others are the fast tier, which `make test` runs with `-m "not slow"`. pytest-xdist runs two processes side
by side and gives them a file at a time.
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from _pytest.nodeid import coerce_node_id
from redis.asyncio import Redis
from xdist.scheduler import LoadScopeScheduling

from headrace_core.redis_access.client import connect, run
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.faults.small_disks import own_disk

SLOW_FOLDERS = {"browser", "chaos", "docker", "e2e", "evidence"}
SLOW_MARKERS = {"slow", "vllm", "e2e"}
TOGETHER = {"vllm": ("tests/rollout/", "tests/gateway/test_serve.py")}
"""What one process runs: who starts a vLLM uses those already started, and test_serve looks at all shared memory of the
machine, of which killed engines leave some for a while."""
FAST_SECONDS = float(os.environ.get("FAST_SECONDS", "5"))
"""What a test of the fast tier may take: its call, less the time in which the machine had too few cores. More where the
machine is not known to be as fast as ours (.ci/run)."""
END_SECONDS = 20.0
"""What processes may take to end after the last test."""
_WAITED = pytest.StashKey[float]()
_RUN = "PYTEST_RUN"

# Every process that a test starts inherits both. The first names the run and, in it, the process of pytest-xdist.
os.environ[_RUN] = f"{os.environ.get(_RUN, secrets.token_hex(8))}/{os.environ.get('PYTEST_XDIST_WORKER', '')}"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before a test loads torch; CONTRIBUTING.md says why
# Where the shell forbids Python to write bytecode, every process that a test starts would compile the packages again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: to look for garbage in it, now and in every later search, would take seconds. And what
    tests leave is looked through less often than each 700 objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        markers = {mark.name for mark in item.iter_markers()}
        in_slow_folder = not SLOW_FOLDERS.isdisjoint(item.path.relative_to(config.rootpath).parts)
        if "fast" not in markers and (in_slow_folder or markers & SLOW_MARKERS):
            item.add_marker("slow")
    _name_apart(items)
    items.sort(key=_place)


def _name_apart(items: list[pytest.Item]) -> None:
    """pytest-xdist runs one test of each id, and schemathesis gives all routes the same: their names differ."""
    for item in items:
        before, _, name = item.nodeid.rpartition("::")
        if name != item.name:
            item._id = coerce_node_id(f"{before}::{item.name}")


def _place(item: pytest.Item) -> int:
    """The longest files come first, so that at the end neither process waits long for the other."""
    return next((place for place, marker in enumerate(("vllm", "e2e")) if item.get_closest_marker(marker)), 2)


class _FilesTogether(LoadScopeScheduling):
    """One file at a time for a process; those of `TOGETHER` as one. (pytest 9.2 ignores the groups of xdist 3.8.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((group for group, files in TOGETHER.items() if file.startswith(files)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _FilesTogether(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    before = _waited_for_a_core()
    try:
        yield
    finally:
        item.stash[_WAITED] = _waited_for_a_core() - before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In `make test`, one that takes too long fails."""
    report = yield
    if item.config.option.markexpr == "not slow" and report.passed and call.when == "call":
        seconds = call.duration - item.stash[_WAITED]
        if seconds > FAST_SECONDS and not item.get_closest_marker("fast"):
            report.outcome = "failed"
            report.longrepr = f"{seconds:.1f} s: make it faster than {FAST_SECONDS} s, or mark it `slow`"
    return report


def _waited_for_a_core() -> float:
    """Seconds in which something on this machine could have run and found no core, as the kernel counts them."""
    try:
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except OSError:
        return 0.0  # this kernel does not count them
    return int(some.rpartition("=")[2]) / 1e6


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_tests() -> Iterator[None]:
    """Kills what is left after the last test, whether it passed or failed; and is an error then."""
    yield
    _, left = psutil.wait_procs(_started_here(), timeout=END_SECONDS)
    commands = [" ".join(process.info["cmdline"] or ())[:200] for process in left]
    _kill(left)
    assert not commands, "processes outlived the tests:\n" + "\n".join(commands)


def pytest_unconfigure() -> None:
    """Where the run was interrupted, pytest-xdist's processes ended without the fixture above."""
    _kill(_started_here())


def _started_here() -> list[psutil.Process]:
    """Processes that run and have inherited the name of this one, wherever they are in the tree."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "ppid", "status"]):
        here = (process.info["environ"] or {}).get(_RUN, "").startswith(os.environ[_RUN])
        command = " ".join(process.info["cmdline"] or ())
        # These two serve all of this process, and end with it.
        serves = process.info["ppid"] == os.getpid() and re.search(
            r"multiprocessing\.(forkserver|resource_tr)", command
        )
        if here and not serves and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_SECONDS)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(redis_server.url)
    await run(client.flushall())
    yield client
    await client.aclose()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may stop, end or change."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_client(own_redis: RedisServer) -> AsyncIterator[Redis]:
    """A client of it, which waits for 20 s where it is away."""
    async with connect(own_redis.url, wait=20.0) as client:
        yield client


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of one MiB. Needs root, to mount it."""
    with own_disk(tmp_path / "small", 1) as folder:
        yield folder
