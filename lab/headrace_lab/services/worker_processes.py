"""Process ids of a job's workers, from the job's events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headrace_core.types.events import WorkerReady


def ready_processes(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """Yields (worker, pid) of each process that became ready, in the order of `events`, which are objects of the API.

    The first rank of a learner is `learner`, the others are `rank-1`, …
    """
    for event in events:
        if (ready := WorkerReady.of(event["data"])) is not None:
            yield from ready.pids.items()
