"""The plan that follows from a seed in the world of the queue: jobs that wait for few cores, gateways, and faults.

Faults happen in the first `FAULT_SECONDS` of virtual time. After that there are none, so that all jobs must end.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from headrace_simulation.fault_plan import FAULT_SECONDS, Fault, Network

NODES_COME_AT = FAULT_SECONDS
"""When the nodes are added that some jobs wait for."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A job. Times are in virtual seconds."""

    submitted: float
    processes: int
    """Its learner and rollout workers; each needs a core."""
    work: float
    """Seconds for which it holds the cores."""


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """Everything that follows from a seed. Nodes have one core each."""

    seed: int
    jobs: tuple[Queued, ...]
    nodes: int
    more_nodes: int
    """Nodes that are added later."""
    gateways: int
    network: Network
    faults: tuple[Fault, ...]

    def only(self, kept: tuple[int, ...]) -> QueuePlan:
        """The plan with only these of its faults."""
        return replace(self, faults=tuple(self.faults[i] for i in kept))

    def misfit(self, number: int) -> bool:
        """Whether the job does not fit on the initial nodes."""
        return self.jobs[number].processes > self.nodes


def queue_plan(seed: int) -> QueuePlan:
    """The plan of a seed. Do not change what existing seeds mean: recorded failures are repeated by their seed."""
    rng = random.Random(f"queue {seed}")
    nodes, gateways = rng.choice((2, 2, 3, 4)), rng.choice((1, 1, 2))
    count, most = rng.randint(3, 9), rng.choice((nodes, nodes, nodes + 1))
    submitted = sorted(round(rng.uniform(0.0, rng.choice((0.5, 4.0, 12.0))), 2) for _ in range(count))
    jobs = tuple(Queued(at, rng.randint(2, most), round(rng.uniform(0.5, 6.0), 2)) for at in submitted)
    quiet = rng.random() < 0.3
    network = Network(
        slow=rng.choice((0.0, 0.02)),
        slow_seconds=rng.choice((0.3, 2.0)),
        lost=0.0 if quiet else rng.choice((0.005, 0.02)),
        ghosts=0.0 if quiet else rng.choice((0.005, 0.02)),
    )
    faults = tuple(_fault(rng, count, gateways) for _ in range(rng.choice((0, 1, 2, 3, 4, 6))))
    return QueuePlan(seed, jobs, nodes, most - nodes, gateways, network, faults)


_KINDS: dict[str, int] = {
    "gateway_dies": 4,
    "gateway_dies_at_call": 6,
    "gateway_dies_starting": 4,
    "gateway_stops": 2,
    "controller_dies": 4,
    "controller_stops": 2,
    "redis_away": 1,
    "ray_away": 2,
    "cancel": 6,
    "pause": 4,
}


def _fault(rng: random.Random, jobs: int, gateways: int) -> Fault:
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    at = round(rng.uniform(0.0, rng.choice((6.0, FAULT_SECONDS))), 2)
    if kind == "gateway_dies_at_call":
        return Fault(
            kind, f"gateway-{rng.randrange(gateways)}", rng.randint(1, 150), detail=rng.choice(("sent", "answered"))
        )
    if kind.startswith("gateway"):
        return Fault(kind, f"gateway-{rng.randrange(gateways)}", at, round(rng.uniform(0.1, 10.0), 2))
    seconds = {"redis_away": (0.1, 6.0), "ray_away": (0.1, 40.0), "controller_stops": (0.5, 60.0), "pause": (0.1, 15.0)}
    lasts = round(rng.uniform(*seconds[kind]), 2) if kind in seconds else 0.0
    of_a_job = kind in ("controller_dies", "controller_stops", "cancel", "pause")
    return Fault(kind, str(rng.randrange(jobs)) if of_a_job else "", at, lasts)
