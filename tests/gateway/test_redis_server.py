"""The embedded Redis: killed, it comes back with all it held; what its append-only file lost, or how it is damaged, is
said."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from headrace_core.concurrency import cancel
from headrace_core.errors import Damaged, DiskFull, Unavailable
from headrace_core.jobs.history import EVENTS, event_of
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.client import connect, run
from headrace_core.restart_budget import RestartBudget
from headrace_core.types.job import Event, Job
from headrace_gateway.service.aof_check import AOF, FOLDER, MANIFEST, whole_bytes
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.part_supervisor import PartSupervisor
from headrace_lab.faults.small_disks import fill

Reach = Callable[[RedisServer], Redis]
COMMANDS, SNAPSHOT = f"{AOF}.1.incr.aof", f"{AOF}.1.base.rdb"


@pytest.fixture
async def reach() -> AsyncIterator[Reach]:
    """A client of a server, closed after the test."""
    async with AsyncExitStack() as clients:

        def connected(server: RedisServer) -> Redis:
            client = connect(server.url, wait=20)
            clients.push_async_callback(client.aclose)
            return client

        yield connected


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


def job(job_id: str) -> Job:
    return Job(id=job_id, created_at=1.0, model="m", model_path="/m", training_file="file-a")


@pytest.mark.parametrize("left", [0, 2, 3, 60])
def test_a_new_redis_without_room_says_so_and_starts_when_there_is_some(small_disk: Path, left: int) -> None:
    """With two pages left, Redis would make its first files without the manifest that names them."""
    in_the_way = fill(small_disk, left * 4096)
    for _ in range(2):
        with pytest.raises(DiskFull, match=f"no room in {small_disk}/redis: "):
            RedisServer(small_disk / "redis").start()
    in_the_way.unlink()
    server = RedisServer(small_disk / "redis")
    server.start()
    server.stop()


async def written(redis: Redis, count: int) -> None:
    for number in range(count):
        await run(redis.set(f"key:{number}", f"value {number}"))


async def events(jobs: JobStore, count: int) -> list[Event]:
    """The first so many of job a."""
    async with asyncio.timeout(10):
        while len(found := await jobs.history.after("ftjob-a", 0, count, EVENTS)) < count:
            await jobs.history.after("ftjob-a", found[-1].number if found else 0, 1, EVENTS, block=1.0)
    return [event_of("ftjob-a", entry) for entry in found]


async def test_one_that_is_killed_comes_back_with_everything_and_says_so(server: RedisServer, reach: Reach) -> None:
    server.start()
    redis = reach(server)
    jobs = JobStore(redis)
    for job_id in ("ftjob-a", "ftjob-b"):
        await jobs.create(job(job_id))
    await jobs.move("ftjob-b", "cancelled")
    keeping = asyncio.create_task(PartSupervisor(server, jobs, RestartBudget(2, 60.0, first=0.1)).run())
    for round_ in range(2):
        await redis.set("number", round_)
        before = server.pid
        os.kill(before, signal.SIGKILL)
        assert await redis.get("number") == str(round_).encode(), "what had been answered was lost"
        assert await redis.incr("number") == round_ + 1
        assert server.pid != before
        told = await events(jobs, round_ + 1)
    assert [e.data and e.data["restart"] for e in told] == [1, 2]
    assert told[0].message == "redis was ended by SIGKILL and was started again after 0.1 s, restart 1 of 2"
    assert told[0].data == {"worker": "redis", "cause": "was ended by SIGKILL", "restart": 1, "of": 2, "delay": 0.1}
    assert await jobs.events("ftjob-b") == [], "a job that has ended was told"
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="SIGKILL, and has used up its restarts"):
        await keeping


@pytest.mark.slow
async def test_one_that_ran_for_a_while_has_its_restarts_again(server: RedisServer, reach: Reach) -> None:
    server.start()
    redis = reach(server)
    keeping = asyncio.create_task(
        PartSupervisor(server, JobStore(redis), RestartBudget(1, window=0.0, first=0.01)).run()
    )
    for _ in range(3):
        os.kill(server.pid, signal.SIGKILL)
        assert await redis.ping()
    await cancel([keeping])


async def test_a_file_that_was_cut_short_is_read_to_its_last_whole_command(
    server: RedisServer, tmp_path: Path, reach: Reach
) -> None:
    server.start()
    await written(reach(server), 10)
    server.stop()
    file = tmp_path / "redis" / FOLDER / COMMANDS
    size = file.stat().st_size
    assert whole_bytes(file) == size
    os.truncate(file, size - 5)
    whole = whole_bytes(file)

    again = RedisServer(tmp_path / "redis")
    again.start()
    redis = reach(again)
    jobs = JobStore(redis)
    await jobs.create(job("ftjob-a"))
    assert again.cut == f"{file} was cut short after {whole} bytes"
    assert (await redis.get("key:8"), await redis.get("key:9")) == (b"value 8", None)
    keeping = asyncio.create_task(PartSupervisor(again, jobs, RestartBudget(1, 60.0)).run())
    told = await events(jobs, 1)
    await cancel([keeping])
    assert told[0].message.startswith("redis left out the last command, not wholly written")
    again.stop()

    third = RedisServer(tmp_path / "redis")
    third.start()
    assert third.cut is None, "it is whole again"
    third.stop()


@pytest.mark.slow
async def test_a_file_that_is_damaged_before_its_end_is_an_error_with_the_remedy(tmp_path: Path, reach: Reach) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    await written(reach(server), 10)
    server.stop()
    file = tmp_path / "redis" / FOLDER / COMMANDS
    content = file.read_bytes()
    place = content.index(b"*3", content.index(b"key:4"))  # where the command after key:4 begins
    file.write_bytes(content[:place] + b"\0" * 40 + content[place + 40 :])

    for _ in range(2):  # the second start meets the same file: nothing was changed
        with pytest.raises(Damaged, match=rf"damaged after {place} of its {len(content)} bytes") as error:
            RedisServer(tmp_path / "redis").start()
    remedy = f"truncate -s {place} {file}"
    assert remedy in error.value.message
    os.truncate(file, place)  # what the remedy says
    mended = RedisServer(tmp_path / "redis")
    mended.start()
    redis = reach(mended)
    assert [await redis.get(f"key:{n}") for n in (4, 5)] == [b"value 4", None]
    mended.stop()


@pytest.mark.parametrize("kind", [b"REDIS0009", b"VALKEY080"])
def test_a_file_that_begins_with_a_snapshot_names_no_place(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / AOF).write_bytes(kind + b" and more")
    assert whole_bytes(tmp_path / AOF) is None


def _scratched(file: Path) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + b"\xff" * 10 + content[middle + 10 :])


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        (MANIFEST, Path.unlink, "is missing, though files that it would name are there"),
        (MANIFEST, _scratched, "is damaged"),
        (SNAPSHOT, Path.unlink, "is missing"),
        (SNAPSHOT, _scratched, "is damaged"),
        (SNAPSHOT, lambda file: os.truncate(file, file.stat().st_size - 9), "is damaged"),
    ],
)
@pytest.mark.slow
async def test_no_start_passes_over_a_file_that_is_missing_or_damaged(
    tmp_path: Path, reach: Reach, file: str, harm: Callable[[Path], None], said: str
) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    await written(reach(server), 10)
    server.stop()
    folder = tmp_path / "redis" / FOLDER
    harm(folder / file)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for _ in range(2):
        with pytest.raises(Damaged) as error:
            RedisServer(tmp_path / "redis").start()
        assert error.value.message.startswith(f"Redis' append-only file {folder / file} {said}; nothing was changed")
        assert str(folder) in error.value.message.partition("To go on")[2]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


async def test_the_single_file_of_versions_before_7_is_taken_over(tmp_path: Path, reach: Reach) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / AOF).write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$3\r\nold\r\n")
    server = RedisServer(tmp_path / "redis")
    server.start()
    assert await reach(server).get("a") == b"old"
    server.stop()


@pytest.mark.parametrize(
    "broken",
    [
        b"*2\r\n$1\r\na\r\n",
        b"*1\r\n$3\r\nab\r\n\r\n",
        b"*x\r\n",
        b"*1\n$1\na\n",
        b"*1\r\n$-1\r\n",
        b"\0" * 99,
        b"*0\r\n",
        b"*1\r\n$1000000000000000000\r\na\r\n",
        b"*1\r\n$9999999999999999999999999\r\na\r\n",
    ],
)
def test_what_is_not_a_whole_command_is_not_counted(tmp_path: Path, broken: bytes) -> None:
    good = b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n"
    (tmp_path / AOF).write_bytes(good + broken)
    assert whole_bytes(tmp_path / AOF) == len(good)
