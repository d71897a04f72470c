"""The plan that follows from a seed: a small job, a network, and the faults to inject.

Faults happen in the first `FAULT_SECONDS` of virtual time. After that there are none, so that the job must end.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

FAULT_SECONDS = 25.0
ROWS = 16
"""Number of rows of the training file."""
FINISHED_WITHIN = 240.0
"""Virtual seconds after the last fault within which every job must end."""
PHASES = ("sent", "flight", "answered")


@dataclass(frozen=True, slots=True)
class JobPlan:
    """The job. Seconds are virtual."""

    batch_size: int
    group_size: int
    max_staleness: int
    steps: int
    late: str
    checkpoint_interval: int
    workers: int
    max_running: int
    lease_seconds: float
    token_seconds: float
    longest: int
    """Maximum number of tokens of a completion; at most 64."""
    train_seconds: float
    filter_groups: bool
    refused_row: int | None = None
    """A row that the engine cannot serve."""
    eval_samples: int | None = None
    """Rows of the validation file; None: the job has none."""
    eval_interval: int = 1
    shortest: int = 1
    """Minimum number of tokens of a completion."""
    finished_within: float = FINISHED_WITHIN


@dataclass(frozen=True, slots=True)
class Network:
    """Faults of the network, as shares of the calls."""

    slow: float
    """Share of slow messages, which take up to `slow_seconds`."""
    slow_seconds: float
    lost: float
    """Share of lost answers; the client repeats the call."""
    ghosts: float
    """Share of calls of which a duplicate arrives late."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, or action of the user."""

    kind: str
    who: str
    at: float
    """Virtual seconds. For `dies_at_call`: the number of the call among all calls of processes of that name; for
    `dies_evaluating`: the number of the completion among all completions of the job's evaluations."""
    seconds: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        place = (
            f"{self.kind[8:]} {self.at:.0f}" if self.kind in ("dies_at_call", "dies_evaluating") else f"{self.at:.2f} s"
        )
        lasts = f" for {self.seconds:.2f} s" if self.seconds else ""
        return " ".join(x for x in (self.kind, self.who, f"at {place}{lasts}", self.detail) if x)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that follows from a seed."""

    seed: int
    job: JobPlan
    network: Network
    faults: tuple[Fault, ...]

    def only(self, kept: tuple[int, ...]) -> Plan:
        """The plan with only these of its faults."""
        return replace(self, faults=tuple(self.faults[i] for i in kept))


def plan(seed: int) -> Plan:
    """The plan of a seed. Do not change what existing seeds mean: recorded failures are repeated by their seed."""
    rng = random.Random(f"plan {seed}")
    job = _job(rng)
    quiet = rng.random() < 0.3
    network = Network(
        slow=rng.choice((0.0, 0.02, 0.1)),
        slow_seconds=rng.choice((0.3, 3.0)),
        lost=0.0 if quiet else rng.choice((0.005, 0.03)),
        ghosts=0.0 if quiet else rng.choice((0.005, 0.03)),
    )
    # A generator of its own, so that the rest of a seed's plan is what it was before this feature was added.
    rows = random.Random(f"rows {seed}")
    if rows.random() < 0.15:
        job = replace(job, refused_row=rows.randrange(ROWS))
    held_out = random.Random(f"evaluations {seed}")
    if held_out.random() < 0.5:
        samples = held_out.choice((1, 4, ROWS))
        job = replace(job, eval_samples=samples, eval_interval=held_out.choice((1, 1, 2)))
    names = ["learner", *(f"rollout-{i}" for i in range(job.workers))]
    faults = [_fault(rng, names) for _ in range(rng.choice((0, 1, 2, 2, 3, 4, 5)))]
    if job.eval_samples is not None and held_out.random() < 0.5:
        who = held_out.choice(("rollout-0", "rollout-0", "controller", "learner"))
        faults.append(Fault("dies_evaluating", who, held_out.randint(1, 4 * job.eval_samples)))
    return Plan(seed, job, network, tuple(faults))


def _job(rng: random.Random) -> JobPlan:
    return JobPlan(
        batch_size=rng.choice((1, 2, 2, 3)),
        group_size=rng.choice((2, 3)),
        max_staleness=rng.choice((0, 1, 1, 2, 3)),
        steps=rng.randint(2, 5),
        late=rng.choice(("mask", "drop", "wait")),
        checkpoint_interval=rng.choice((1, 1, 2)),
        workers=rng.choice((1, 2, 2, 3)),
        max_running=rng.choice((3, 6, 12)),
        lease_seconds=rng.choice((1.5, 3.0, 6.0)),
        token_seconds=rng.choice((0.05, 0.2)),
        longest=rng.choice((4, 24)),
        train_seconds=rng.choice((0.05, 0.3, 1.0)),
        filter_groups=rng.random() < 0.2,
    )


_KINDS: dict[str, int] = {
    "dies_at_call": 10,
    "dies": 4,
    "stops": 4,
    "redis_away": 2,
    "redis_clock": 2,
    "clock": 1,
    "checkpoint_damaged": 2,
    "weights_lost": 1,
    "power_loss": 1,
    "max_staleness": 2,
    "group_size": 1,
    "drain": 1,
    "pause": 2,
    "cancel": 1,
}


def _fault(rng: random.Random, names: list[str]) -> Fault:
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    who, at = (
        rng.choice([*names, "learner", "controller"]),
        round(rng.uniform(0.0, rng.choice((4.0, 12.0, FAULT_SECONDS))), 2),
    )
    made: dict[str, Any] = {
        "dies_at_call": lambda: Fault(kind, who, rng.randint(1, 90), detail=rng.choice(PHASES)),
        "stops": lambda: Fault(kind, who, at, round(rng.uniform(0.1, 12.0), 2)),
        "redis_away": lambda: Fault(kind, "", at, round(rng.choice((rng.uniform(0.1, 2.5), rng.uniform(4, 12))), 2)),
        "redis_clock": lambda: Fault(kind, "", at, detail=rng.choice(("-15", "-2", "5", "600"))),
        "clock": lambda: Fault(kind, who, at, detail=rng.choice(("-3600", "-15", "600"))),
        "checkpoint_damaged": lambda: Fault(kind, "learner", at),
        "weights_lost": lambda: Fault(kind, "learner", at),
        "power_loss": lambda: Fault(kind, "", at, round(rng.uniform(0.05, 1.0), 2)),
        "max_staleness": lambda: Fault(kind, "user", at, detail=str(rng.randint(0, 3))),
        "group_size": lambda: Fault(kind, "user", at, detail=str(rng.randint(2, 4))),
        "drain": lambda: Fault(kind, rng.choice(names[1:]), at, round(rng.uniform(0.5, 8.0), 2)),
        "pause": lambda: Fault(kind, "user", at, round(rng.uniform(0.1, 10.0), 2)),
        "cancel": lambda: Fault(kind, "user", at),
    }
    return made[kind]() if kind in made else Fault(kind, who, at)
