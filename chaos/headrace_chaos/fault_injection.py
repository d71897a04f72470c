"""The strikes of a campaign (kind of process, signal, time), drawn at random before it begins, and how one is done."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

STOP_SHARE = 0.25
"""Fraction of the strikes that stop a process (SIGSTOP, later SIGCONT) rather than kill it."""
SHORT_STOP, LONG_STOP = (0.5, 4.0), (12.0, 26.0)
"""Range of seconds that a process is stopped; a long stop outlasts leases, and often the watchdog's limit."""
LONG_SHARE = 0.25
"""Fraction of the stops that are long."""
HURRIED_SHARE = 0.3
"""Fraction of the strikes after which the next follows at once, while the system still recovers."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One planned fault."""

    kind: str
    after: float
    """Seconds of undisturbed work before the strike."""
    stopped: float | None
    """Seconds between SIGSTOP and SIGCONT; None: SIGKILL."""
    hurried: bool
    """Whether the next strike follows without waiting for the job to recover."""
    choice: float
    """A number in [0, 1) that selects one of the processes of the kind."""

    @property
    def name(self) -> str:
        """What is done, as the progress line prints it."""
        return "SIGKILL" if self.stopped is None else f"SIGSTOP for {self.stopped:.1f} s"


def plan(count: int, kinds: Sequence[str], rng: random.Random) -> list[Strike]:
    """`count` strikes in random order.

    The numbers of strikes of the kinds differ by at most one. At least one strike of each kind kills.
    """
    drawn: list[Strike] = []
    for number in range(count):
        kills = number < len(kinds) or rng.random() >= STOP_SHARE
        stop = rng.uniform(*(LONG_STOP if rng.random() < LONG_SHARE else SHORT_STOP))
        strike = Strike(
            kind=kinds[number % len(kinds)],
            after=rng.uniform(0.0, 3.0),
            stopped=None if kills else stop,
            hurried=rng.random() < HURRIED_SHARE,
            choice=rng.random(),
        )
        drawn.append(strike)
    rng.shuffle(drawn)
    return drawn


def strike(process: psutil.Process, seconds: float | None) -> bool:
    """Stop the process for `seconds`, or kill it if None. Returns False if it had already ended."""
    try:
        if seconds is None:
            process.send_signal(signal.SIGKILL)
            return True
        process.send_signal(signal.SIGSTOP)
    except psutil.NoSuchProcess:
        return False
    time.sleep(seconds)
    with contextlib.suppress(psutil.NoSuchProcess):  # the service may have killed it while it did not answer
        process.send_signal(signal.SIGCONT)
    return True
