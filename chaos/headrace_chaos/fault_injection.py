"""What is done to which kind of process, and when: drawn from a seed before the campaign begins."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

STOPPED = 0.25
"""Share of the strikes that stop a process (SIGSTOP, later SIGCONT) rather than kill it."""
SHORT, LONG = (0.5, 4.0), (12.0, 26.0)
"""Seconds that one is stopped; a long stop outlasts leases, and often the watchdog's patience."""
LONG_SHARE = 0.25
HURRIED = 0.3
"""Share of the strikes after which the next comes at once, while the system still recovers."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One of them."""

    kind: str
    after: float
    """Seconds of undisturbed work before it."""
    stopped: float | None
    """Seconds between SIGSTOP and SIGCONT; None: SIGKILL."""
    hurried: bool
    """The next strike does not wait until the job goes on."""
    choice: float
    """Which of the processes of its kind: a number in [0, 1)."""

    @property
    def name(self) -> str:
        """For the progress line."""
        return "SIGKILL" if self.stopped is None else f"SIGSTOP for {self.stopped:.1f} s"


def plan(count: int, kinds: Sequence[str], rng: random.Random) -> list[Strike]:
    """`count` strikes in random order, as many of each kind, give or take one; the first of a kind kills."""
    drawn: list[Strike] = []
    for number in range(count):
        kills = number < len(kinds) or rng.random() >= STOPPED
        stop = rng.uniform(*(LONG if rng.random() < LONG_SHARE else SHORT))
        strike = Strike(
            kind=kinds[number % len(kinds)],
            after=rng.uniform(0.0, 3.0),
            stopped=None if kills else stop,
            hurried=rng.random() < HURRIED,
            choice=rng.random(),
        )
        drawn.append(strike)
    rng.shuffle(drawn)
    return drawn


def strike(process: psutil.Process, seconds: float | None) -> bool:
    """Whether it was hit; not where it had ended already."""
    try:
        if seconds is None:
            process.send_signal(signal.SIGKILL)
            return True
        process.send_signal(signal.SIGSTOP)
    except psutil.NoSuchProcess:
        return False
    time.sleep(seconds)
    with contextlib.suppress(psutil.NoSuchProcess):  # killed meanwhile by who missed it: one of the ways to go on
        process.send_signal(signal.SIGCONT)
    return True
