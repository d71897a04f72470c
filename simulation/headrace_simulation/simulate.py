"""Simulates thousands of hostile schedules of one job each, with the real ledger, learner, rollout worker and
controller.

    make simulate N=10000 SEED=0          that many schedules, of the seeds from SEED on; JOBS=2: in two processes
    make simulate N=1 SEED=4711           one of them again, with every step it took
    … PLANT=fencing_off                   with a bug in it (`planted_bugs`): the campaign ends when it is found
    … WORLD=queue                         several jobs that wait for few cores, and the gateways that start them

What is real and what is simulated: `wiring`. The faults: `fault_plan`. What is checked after each event: `invariants`.
For the queue: `queue_world`, `queue_fault_plan`, `queue_invariants`.
A failing schedule is repeated with fewer of its faults; the smallest one that fails is printed. The last line says PASS
if no invariant was violated, or a planted bug was found, else MISS.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import multiprocessing
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from headrace_lab.reports.benchmark_report import arguments, report
from headrace_rewards.sandbox.kernel.syscalls import signal_at_death_of_parent
from headrace_simulation.fault_plan import Plan, plan
from headrace_simulation.planted_bugs import PLANTS, PlaceLost
from headrace_simulation.queue_fake_ray import QUEUE_PLANTS
from headrace_simulation.queue_fault_plan import QueuePlan, queue_plan
from headrace_simulation.queue_schedule import QueueSchedule
from headrace_simulation.redis_port import Server
from headrace_simulation.schedule import Schedule, drive

CHUNK = 250
"""Schedules between two lines of progress."""
WORLDS: dict[str, Callable[[int], Plan | QueuePlan]] = {"job": plan, "queue": queue_plan}
"""The function from a seed to a plan, by world."""
AT_ONCE = 48
"""Schedules that share a round trip to Redis."""
PLANT_WITHIN = 10_000
"""Schedules in which a planted bug must be found."""


@dataclass
class Tally:
    """The results of several schedules."""

    schedules: int = 0
    events: int = 0
    """Number of calls that may have changed something; after each, everything is checked."""
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    """Number of jobs by final status."""
    broken: list[tuple[int, str]] = field(default_factory=list)
    """(seed, violation) of the schedules that failed."""

    def add(self, other: Tally) -> None:
        """Add the results of `other`."""
        self.schedules += other.schedules
        self.events += other.events
        self.faults += other.faults
        self.ended += other.ended
        self.broken += other.broken


def run(
    plans: Sequence[Plan | QueuePlan], plant: str | None = None, at_once: int = AT_ONCE, traced: bool = True
) -> Generator[tuple[Schedule | QueueSchedule, str | None]]:
    """Run schedules; yields each as it ends, with its violation. With `traced`, its steps include every call."""
    with (
        tempfile.TemporaryDirectory(prefix="headrace-simulation-", dir=_memory()) as folder,
        Server(Path(folder) / "redis") as server,
        _collected_afterwards(),
    ):
        schedules = (_schedule(server, each, Path(folder), plant, traced) for each in plans)
        with closing(drive(server, schedules, at_once)) as driven:
            for schedule, error in driven:
                if isinstance(error, PlaceLost):
                    raise error
                yield schedule, None if error is None else f"{type(error).__name__}: {error}"


def _schedule(
    server: Server, plan: Plan | QueuePlan, folder: Path, plant: str | None, traced: bool
) -> Schedule | QueueSchedule:
    if isinstance(plan, QueuePlan):
        return QueueSchedule(server, plan, folder, plant, traced)
    return Schedule(server, plan, folder, plant, traced)


@contextmanager
def _collected_afterwards() -> Iterator[None]:
    """Context without the garbage collector, which would take a third of the time. At the end only the objects created
    within are collected."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.enable()


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def tally(first: int, count: int, plant: str | None = None, world: str = "job") -> Tally:
    """Run the schedules of `count` seeds; with a planted bug, only up to the first that finds it."""
    silence()
    total = Tally()
    with closing(run([WORLDS[world](seed) for seed in range(first, first + count)], plant, traced=False)) as ended:
        for schedule, violation in ended:
            total.schedules += 1
            total.events += schedule.world.observer.events
            total.faults += schedule.happened
            total.ended.update(schedule.world.observer.ended_as())
            if violation is not None:
                total.broken.append((schedule.plan.seed, violation))
                if plant is not None:
                    break
    return total


def shrunk(plan: Plan | QueuePlan, plant: str | None) -> Plan | QueuePlan:
    """The plan of a failing schedule without the faults that the failure does not need."""
    needed = tuple(range(len(plan.faults)))
    for fault in reversed(needed):
        fewer = tuple(f for f in needed if f != fault)
        if any(violation for _, violation in run([plan.only(fewer)], plant)):
            needed = fewer
    return plan.only(needed)


def trace(schedule: Schedule | QueueSchedule, violation: str | None) -> str:
    """The steps of a schedule, one per line: virtual seconds, process, what it did."""
    lines = [f"{at:9.3f}  {who:<12} {what}" for at, who, what in schedule.world.steps]
    faults = [f"  fault      {fault}" for fault in schedule.plan.faults]
    plan = schedule.plan
    jobs = plan.jobs if isinstance(plan, QueuePlan) else (plan.job,)
    head = [f"seed {plan.seed}: {', '.join(map(str, jobs))}", f"  {plan.network}", *faults]
    return "\n".join([*head, *lines, f"→ {violation or ', '.join(schedule.world.observer.ended_as())}"])


def silence() -> None:
    """Suppress the services' logs, which would be full of the injected faults."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def explain(seed: int, plant: str | None, world: str) -> None:
    """Print a failing schedule, shrunk, and the command that repeats it."""
    small = shrunk(WORLDS[world](seed), plant)
    for schedule, violation in run([small], plant):
        print(trace(schedule, violation))
    options = f" WORLD={world}" * (world != "job") + (f" PLANT={plant}" if plant else "")
    print(f"again: make simulate N=1 SEED={seed}{options}")


def campaign(first: int, count: int, jobs: int, plant: str | None, world: str) -> Tally:
    """Run all schedules, printing progress."""
    chunks = [(at, min(CHUNK, first + count - at)) for at in range(first, first + count, CHUNK)]
    total, began = Tally(), time.monotonic()
    for part in _parts_of(chunks, jobs, plant, world):
        total.add(part)
        for seed, violation in part.broken:
            print(f"seed {seed}: {violation}", flush=True)
        rate = 60 * total.schedules / (time.monotonic() - began)
        print(f"{total.schedules} of {count} schedules, {len(total.broken)} broken, {rate:.0f} a minute", flush=True)
        if plant is not None and total.broken:
            break
    return total


def _parts_of(chunks: Sequence[tuple[int, int]], jobs: int, plant: str | None, world: str) -> Iterator[Tally]:
    if jobs == 1:
        yield from (tally(first, count, plant, world) for first, count in chunks)
        return
    spawn, ends = multiprocessing.get_context("spawn"), (signal.SIGTERM,)  # a killed campaign leaves none behind
    with ProcessPoolExecutor(jobs, spawn, signal_at_death_of_parent, ends) as pool:
        submitted = [pool.submit(tally, first, count, plant, world) for first, count in chunks]
        try:
            for each in submitted:
                yield each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    options = _options()
    silence()
    began = time.monotonic()
    if options.n == 1:
        for schedule, violation in run([WORLDS[options.world](options.seed)], options.plant):
            print(trace(schedule, violation))
    total = campaign(options.seed, options.n, options.jobs, options.plant, options.world)
    minutes = (time.monotonic() - began) / 60
    if total.broken and options.n > 1:
        explain(total.broken[0][0], options.plant, options.world)
    passed = bool(total.broken) if options.plant else not total.broken
    result = {
        "schedules": total.schedules,
        "events": total.events,
        "faults": dict(total.faults.most_common()),
        "jobs_ended": dict(total.ended),
        "schedules_per_minute": total.schedules / minutes,
        "processes": options.jobs,
        "plant": options.plant,
        "world": options.world,
        "broken": total.broken,
    }
    figures = (
        f"{total.schedules} schedules, {total.events} events, {total.faults.total()} faults, "
        f"{len(total.broken)} broken, {total.schedules / minutes:.0f} a minute"
    )
    report("simulate" if options.world == "job" else "simulate_queue", passed, figures, result, options)


def _options() -> argparse.Namespace:
    parser = arguments("simulate", __doc__)
    parser.add_argument("--n", type=int, default=1000, help="schedules")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--plant", choices=(*PLANTS, *QUEUE_PLANTS), help=f"a bug that must be found; give it {PLANT_WITHIN} schedules"
    )
    parser.add_argument("--world", choices=WORLDS, default="job", help="one job, or a queue of several")
    options = parser.parse_args()
    if options.plant is not None and (options.plant in QUEUE_PLANTS) != (options.world == "queue"):
        parser.error(f"{options.plant} is a bug of another world")
    return options


atexit.register(gc.unfreeze)  # see `_collected_afterwards`

if __name__ == "__main__":
    main()
