"""The supervisor of one worker, on a real local Ray: what dies is started again, also where nothing runs yet."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from redis.asyncio import Redis

from headrace_controller.pause_reasons import RestartsExhausted
from headrace_controller.worker_process import ActorProcess, RankedProcess, WorkerProcess
from headrace_controller.workers.supervisor import WorkerSupervisor
from headrace_core.concurrency import cancel
from headrace_core.errors import FAILED_BY_ITSELF, HeadraceError, Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.restart_budget import RestartBudget
from headrace_gateway.service.ray_connection import RayConnection
from headrace_lab.services.jobs import worker_config
from headrace_lab.waiting import wait_until_async

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CONFIG = worker_config("ftjob-supervised")


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One for all tests: each has actors of its own."""
    with RayConnection(None):
        yield


def supervisor_of(redis: Redis, launch: Callable[[WorkerConfig], WorkerProcess], max_restarts: int) -> WorkerSupervisor:
    restarts = RestartBudget(max_restarts, window=600.0)
    return WorkerSupervisor(CONFIG, launch, JobStore(redis), RecoveryCounters(redis, CONFIG.job_id), restarts)


def begun() -> asyncio.Event:
    """Set."""
    event = asyncio.Event()
    event.set()
    return event


def mortal_class() -> type:
    """Made in a function, so that Ray sends it whole: its processes cannot import tests."""

    class Mortal:
        """A worker that dies the first `deaths` times it is asked; a file counts them."""

        def __init__(self, deaths: int, file: str) -> None:
            self._deaths, self._file = deaths, Path(file)

        async def start(self) -> dict[str, Any]:
            return {}

        async def ping(self) -> None:
            """Answers."""

        async def evaluate(self, version: int) -> int:
            died = len(self._file.read_text()) if self._file.exists() else 0
            if died < self._deaths:
                self._file.write_text("x" * (died + 1))
                os._exit(1)
            return version

        async def stop(self) -> None:
            """Nothing to let go of."""

    return Mortal


async def test_a_worker_that_dies_before_it_works_is_started_again_up_to_a_limit(redis: Redis, tmp_path: Path) -> None:
    def supervisor(deaths: int) -> WorkerSupervisor:
        mortal = ray.remote(mortal_class()).options(num_cpus=0)
        file = str(tmp_path / str(deaths))
        return supervisor_of(redis, lambda _: ActorProcess(mortal.remote(deaths, file)), max_restarts=2)

    mended = supervisor(deaths=2)
    running = asyncio.create_task(mended.run(asyncio.Event()))
    assert await mended.call("evaluate", 7) == 7
    await cancel([running])
    await mended.stop()

    lost = supervisor(deaths=3)
    running, asked = asyncio.create_task(lost.run(asyncio.Event())), asyncio.create_task(lost.call("evaluate", 7))
    with pytest.raises(RestartsExhausted, match="used up its restarts"):
        await running
    await cancel([asked])
    told = [event for _, event in await JobStore(redis).events(CONFIG.job_id)]
    assert sum("failed and is started again" in event.message for event in told) == 4
    said = [event.data for event in told if event.level == "warn" and event.data is not None]
    assert [(s["worker"], s["restart"], s["of"], s["delay"]) for s in said] == [
        ("rollout-0", 1, 2, 1.0), ("rollout-0", 2, 2, 2.0)
    ] * 2  # fmt: skip
    assert all("died" in s["cause"] for s in said)
    assert await RecoveryCounters(redis, CONFIG.job_id).counts() == ({}, {"rollout-0": 4})


def stubborn_class() -> type:
    """Made in a function, as `mortal_class`."""

    class Stubborn:
        """A worker whose start fails: always with the same error, or with the errors that it is given."""

        def __init__(self, errors: list[Exception], file: str) -> None:
            self._errors, self._file = errors, Path(file)

        async def start(self) -> dict[str, Any]:
            begun = len(self._file.read_text()) if self._file.exists() else 0
            self._file.write_text("x" * (begun + 1))
            raise self._errors[min(begun, len(self._errors) - 1)]

        async def stop(self) -> None:
            """Nothing to let go of."""

    return Stubborn


async def test_a_start_that_fails_twice_in_the_same_way_is_not_tried_again(redis: Redis, tmp_path: Path) -> None:
    too_much = "vLLM did not start on /m: torch.OutOfMemoryError: 200 GiB are too many"
    same = HeadraceError(too_much, code=FAILED_BY_ITSELF)

    async def starts(name: str, *errors: Exception) -> int:
        stubborn = ray.remote(stubborn_class()).options(num_cpus=0)
        file = str(tmp_path / name)
        worker = supervisor_of(redis, lambda _: ActorProcess(stubborn.remote(list(errors), file)), max_restarts=2)
        with pytest.raises(RestartsExhausted) as gave_up:
            await worker.run(asyncio.Event())
        assert str(errors[-1]) in gave_up.value.message
        return (tmp_path / name).stat().st_size

    other_figures = HeadraceError(too_much.replace("200", "201"), code=FAILED_BY_ITSELF)
    assert await starts("same", same, other_figures) == 2
    assert await starts("others", HeadraceError("no room yet", code=FAILED_BY_ITSELF), same) == 3
    assert await starts("away", Unavailable("Redis does not answer")) == 3, "that part may be back"
    told = [event.message for _, event in await JobStore(redis).events(CONFIG.job_id)]
    assert any(too_much in message for message in told)


def rank_class() -> type:
    """Made in a function, as `mortal_class`."""

    class Rank:
        """A rank of a learner: notes its start in a file; dies in its first run where it is told to."""

        def __init__(self, number: int, folder: str, dies: bool) -> None:
            self._number, self._starts, self._dies = number, Path(folder) / f"rank-{number}", dies

        async def start(self) -> dict[str, Any]:
            with self._starts.open("a") as file:
                file.write("x")
            return {"pid": os.getpid()}

        async def run(self) -> str:
            if self._dies and self._starts.read_text() == "x":
                os._exit(1)
            return f"rank {self._number} ended"

        async def stop(self) -> None:
            """Nothing to let go of."""

    return Rank


async def test_a_worker_that_dies_while_it_waits_for_others_is_started_again(redis: Redis, tmp_path: Path) -> None:
    """Those may wait for it: a rollout worker that starts, for weights that were lost with a learner."""
    silent, pids, begin = ray.remote(silent_class()).options(num_cpus=0), tmp_path / "pids", asyncio.Event()
    worker = supervisor_of(redis, lambda _: ActorProcess(silent.remote(str(pids))), max_restarts=1)
    running = asyncio.create_task(worker.run(begin))
    await worker.until_ready()
    assert not worker.working
    os.kill(int(pids.read_text()), signal.SIGKILL)
    await wait_until_async(lambda: not worker.ready, "the death is noticed", pause=0.1)
    await worker.until_ready()
    assert len(pids.read_text().split()) == 2
    assert not running.done()
    begin.set()
    assert await running == "done"
    await worker.stop()


async def test_when_one_rank_of_a_learner_dies_all_are_started_again(redis: Redis, tmp_path: Path) -> None:
    rank = ray.remote(rank_class()).options(num_cpus=0)
    launch = lambda _: RankedProcess(  # noqa: E731
        [ActorProcess(rank.remote(number, str(tmp_path), number == 1)) for number in range(2)]
    )
    learner = supervisor_of(redis, launch, max_restarts=1)
    assert await learner.run(begun()) == "rank 0 ended"
    await learner.stop()
    assert [(tmp_path / f"rank-{number}").read_text() for number in range(2)] == ["xx", "xx"]
    told = [event.message for _, event in await JobStore(redis).events(CONFIG.job_id)]
    assert sum("failed and is started again" in message for message in told) == 1
    assert all("rank 1 pid" in message for message in told if "is ready" in message)


def silent_class() -> type:
    """Made in a function, as `mortal_class`."""

    class Silent:
        """A worker that runs until it is ended, once; its second process returns."""

        def __init__(self, file: str) -> None:
            self._file = Path(file)

        async def start(self) -> dict[str, Any]:
            with self._file.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return {}

        async def run(self) -> str:
            while len(self._file.read_text().split()) == 1:  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.1)
            return "done"

        async def ping(self) -> None:
            """Answers."""

        async def stop(self) -> None:
            """Nothing to let go of."""

    return Silent


async def test_a_stopped_process_is_silent_and_once_ended_is_killed_and_started_again(
    redis: Redis, tmp_path: Path
) -> None:
    silent, pids = ray.remote(silent_class()).options(num_cpus=1), tmp_path / "pids"
    worker = supervisor_of(redis, lambda _: ActorProcess(silent.remote(str(pids))), max_restarts=1)
    running = asyncio.create_task(worker.run(begun()))
    await wait_until_async(lambda: worker.ready and worker.silent() == 0.0, "it works", pause=0.1)
    pid = int(pids.read_text())
    os.kill(pid, signal.SIGSTOP)
    await wait_until_async(lambda: worker.silent() >= 1.0, "it is silent for a second", pause=0.1)
    worker.end("it did not answer for 1 s")
    assert await asyncio.wait_for(running, 60) == "done"
    await wait_until_async(lambda: not psutil.pid_exists(pid), "its process is gone", pause=0.1)
    assert worker.silent() == 0.0
    await worker.stop()
    told = [event.data for _, event in await JobStore(redis).events(CONFIG.job_id) if event.level == "warn"]
    assert told == [
        {"worker": "rollout-0", "cause": "it did not answer for 1 s", "restart": 1, "of": 1, "delay": 1.0},
    ]
