"""The observer of the queue: what must hold of jobs that wait, and of those that run.

after each call that may have changed something
  ended    a job that has ended stays so; one that is at rest holds no cores
when a job is placed
  order    no job that was queued before its controller was started, and that this cluster takes, is left without room
           by it: who comes first is placed first, whatever their sizes
when a controller is started
  one      no other one of the job lives
  few      no more wait than there is room for, one more, and one that says why it cannot be placed
at the end: every job has succeeded or was cancelled by its user, none holds anything, no controller is left
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace_controller.queue_window import MISFITS
from headrace_core.jobs.job_store import ENDED
from headrace_core.redis_access.keys import JobKeys
from headrace_simulation.invariants import expect

if TYPE_CHECKING:
    from headrace_simulation.queue_world import QueueWorld
    from headrace_simulation.world import Call

STANDINGS = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HMGET', key, 'status', 'at_rest') end
return found
"""
LOOKED_BEFORE = 10.0
"""Virtual seconds by which what a gateway goes by may be older than what it starts."""


class QueueObserver:
    """Of one world; jobs by their number."""

    signal = b""

    def __init__(self, world: QueueWorld) -> None:
        self._world = world
        count = len(world.plan.jobs)
        self.statuses: list[str] = [""] * count
        self.at_rest = [False] * count
        self.queued_since: list[float | None] = [None] * count
        self.started_at: dict[int, float] = {}
        """When the job's controller was started that lives."""
        self.cancelled = set[int]()
        """By their users."""
        self.events = 0

    def keys(self) -> list[str]:
        """For `STANDINGS`."""
        return [JobKeys(job_id).job for job_id in self._world.job_ids]

    def saw(self, call: Call, raw: list[Any], books: list[Any]) -> None:
        """`books`: the answer to `STANDINGS`. Raises `Violation`."""
        self.events += 1
        for number, (status, at_rest) in enumerate(books):
            now, before = (status or b"").decode(), self.statuses[number]
            expect(before not in ENDED or now == before, "job {} was {} and became {}", number, before, now)
            if now == "queued" and before != "queued":
                self.queued_since[number] = self._world.loop.now
            self.statuses[number], self.at_rest[number] = now, at_rest is not None
            if at_rest is not None and now in ENDED:
                expect(not self._world.ray.holds(number), "job {} is at rest as {}, and holds cores", number, now)

    def starts(self, number: int) -> None:
        """A controller of the job is started."""
        living = self._world.ray.actors(number)
        expect(len(living) == 1, "job {} has {} controllers", number, len(living))
        self.started_at[number] = self._world.loop.now
        plan, ray = self._world.plan, self._world.ray
        waiting = [n for n in self._numbers() if self.statuses[n] == "queued" and ray.actors(n) and not ray.holds(n)]
        misfits = [n for n in waiting if plan.misfit(n)]
        room = (plan.nodes + plan.more_nodes) // min(job.processes for job in plan.jobs)
        most = room + 1 + min(len(misfits), MISFITS)
        expect(len(waiting) <= most, "jobs {} wait, each with a controller; {} may", waiting, most)

    def placed(self, number: int) -> None:
        """The job holds its cores from now on."""
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
        """The world is still."""
        for number in self._numbers():
            wanted = {"succeeded", "cancelled"} if number in self.cancelled else {"succeeded"}
            expect(self.statuses[number] in wanted, "job {} ended as {}", number, self.statuses[number])
            expect(not self._world.ray.holds(number), "job {} holds cores after its end", number)
            expect(not self._world.ray.actors(number), "job {} has a controller after its end", number)

    def _numbers(self) -> range:
        return range(len(self.statuses))
