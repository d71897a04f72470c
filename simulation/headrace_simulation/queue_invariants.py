"""The observer of the queue, which checks the invariants of jobs that wait and run.

after each call that may have changed something
  ended    a job that has ended stays ended; one at rest holds no cores
when a job is placed
  order    it does not take the cores of a job that fits on the cluster and was queued before its controller was
           started: jobs are placed in their order, whatever their sizes
when a controller is started
  one      the job has no other living controller
  few      no more jobs wait with a controller than could be placed, plus one, plus one that reports why it does not fit
at the end: every job has succeeded or was cancelled by its user, holds no cores, and has no controller
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace_controller.queue_window import MAX_UNPLACEABLE
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import ENDED
from headrace_simulation.invariants import expect

if TYPE_CHECKING:
    from headrace_simulation.queue_world import QueueWorld
    from headrace_simulation.world import Call

STATUS_DUMP = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HMGET', key, 'status', 'at_rest') end
return found
"""
LOOKED_BEFORE = 10.0
"""Virtual seconds by which the information may be outdated on which a gateway starts a controller."""


class QueueObserver:
    """The observer of one world; jobs are identified by their number."""

    signal = b""

    def __init__(self, world: QueueWorld) -> None:
        self._world = world
        count = len(world.plan.jobs)
        self.statuses: list[str] = [""] * count
        self.at_rest = [False] * count
        self.queued_since: list[float | None] = [None] * count
        self.started_at: dict[int, float] = {}
        """When the job's living controller was started."""
        self.cancelled = set[int]()
        """Jobs that their users cancelled."""
        self.events = 0

    def keys(self) -> list[str]:
        """KEYS of `STATUS_DUMP`."""
        return [JobKeys(job_id).job for job_id in self._world.job_ids]

    def saw(self, call: Call, raw: list[Any], statuses_read: list[Any]) -> None:
        """Check the jobs after a call. `statuses_read`: the answer to `STATUS_DUMP`. Raises `Violation`."""
        self.events += 1
        for number, (status, at_rest) in enumerate(statuses_read):
            now, before = (status or b"").decode(), self.statuses[number]
            expect(before not in ENDED or now == before, "job {} was {} and became {}", number, before, now)
            if now == "queued" and before != "queued":
                self.queued_since[number] = self._world.loop.now
            self.statuses[number], self.at_rest[number] = now, at_rest is not None
            if at_rest is not None and now in ENDED:
                expect(not self._world.ray.holds(number), "job {} is at rest as {}, and holds cores", number, now)

    def starts(self, number: int) -> None:
        """Check that a controller of the job may be started."""
        living = self._world.ray.actors(number)
        expect(len(living) == 1, "job {} has {} controllers", number, len(living))
        self.started_at[number] = self._world.loop.now
        plan, ray = self._world.plan, self._world.ray
        waiting = [n for n in self._numbers() if self.statuses[n] == "queued" and ray.actors(n) and not ray.holds(n)]
        misfits = [n for n in waiting if plan.misfit(n)]
        room = (plan.nodes + plan.more_nodes) // min(job.processes for job in plan.jobs)
        most = room + 1 + min(len(misfits), MAX_UNPLACEABLE)
        expect(len(waiting) <= most, "jobs {} wait, each with a controller; {} may", waiting, most)

    def placed(self, number: int) -> None:
        """Check that the job may be placed, which holds its cores from now on."""
        if self._world.plan.misfit(number):
            return
        began, free = self.started_at[number] - LOOKED_BEFORE, self._world.ray.free_cores()
        for older in self._numbers():
            since = self.queued_since[older]
            passed = (
                older < number
                and self.statuses[older] == "queued"
                and since is not None
                and since < began
                and not self._world.plan.misfit(older)
                and not self._world.ray.holds(older)
                and self._world.plan.jobs[older].processes > free
            )
            expect(not passed, "job {} was placed, and job {}, queued since {} s, has no room", number, older, since)

    def ended_as(self) -> list[str]:
        """The jobs' statuses."""
        return list(self.statuses)

    def ended(self) -> None:
        """Check the end: nothing happens any more."""
        for number in self._numbers():
            wanted = {"succeeded", "cancelled"} if number in self.cancelled else {"succeeded"}
            expect(self.statuses[number] in wanted, "job {} ended as {}", number, self.statuses[number])
            expect(not self._world.ray.holds(number), "job {} holds cores after its end", number)
            expect(not self._world.ray.actors(number), "job {} has a controller after its end", number)

    def _numbers(self) -> range:
        return range(len(self.statuses))
