"""A simulated engine with continuous batching, whose decode step takes base + running × each seconds of the loop's
time.

    generate ──► a heap, ordered by the progress at which a request ends ◄── one timer, for the earliest of them
    update   ──► decoding pauses; tokens sampled from here on have the new version

Progress is the number of tokens that a request submitted at the start would have. Between two changes of the number of
requests it grows linearly, so that the simulation costs O(log requests) per event, not per token. It satisfies the
invariants of `headrace_rollout.engines.engine`, but has no `score`; lengths and versions are simulated, token ids are
meaningless.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace_rollout.engines.engine import Sampled, SamplingConfig, UpdateMode, UpdateReport


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """One device: a decode step with r requests takes `base` + r × `each` seconds."""

    base: float
    """Seconds of a step for reading the weights and launching kernels."""
    each: float
    """Seconds of a step for each request, for reading its KV cache."""
    update_pause: float
    """Seconds without decoding at a weight update."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Completion lengths: lognormal with a cap. The lengths of a row do not depend on when and where it is
    generated."""

    mean: float
    """Mean of the capped lengths."""
    cap: int
    capped_share: float
    """Share of completions that reach the cap."""
    seed: int = 0

    def parameters(self) -> tuple[float, float]:
        """(μ, σ) of the logarithm, by bisection: E[min(L, cap)] = mean and P(L ≥ cap) = capped_share."""
        normal = NormalDist()
        z = normal.inv_cdf(1 - self.capped_share)
        low, high = 0.01, 4.0
        for _ in range(60):
            sigma = (low + high) / 2
            mu = np.log(self.cap) - z * sigma
            below = np.exp(mu + sigma**2 / 2) * normal.cdf(z - sigma)
            low, high = (sigma, high) if below + self.cap * self.capped_share > self.mean else (low, sigma)
        return float(mu), float(sigma)

    def table(self, rows: int, group_size: int) -> npt.NDArray[np.int64]:
        """[rows, group_size] lengths, each 1 … cap."""
        mu, sigma = self.parameters()
        drawn = np.random.default_rng(self.seed).lognormal(mu, sigma, (rows, group_size))
        return np.clip(np.ceil(drawn), 1, self.cap).astype(np.int64)


@dataclass(order=True, slots=True)
class _Request:
    """A request in flight, from progress `began` to progress `ends`."""

    ends: float
    number: int
    began: float = field(compare=False)
    length: int = field(compare=False)
    future: asyncio.Future[Sampled] = field(compare=False)


class SimulatedEngine:
    """One device. A prompt is [row]; the i-th request of a row has the row's i-th length, modulo the group size."""

    def __init__(self, speed: DecodeSpeed, lengths: npt.NDArray[np.int64]) -> None:
        self._speed, self._lengths = speed, lengths
        self._loop = asyncio.get_running_loop()
        self._heap: list[_Request] = []
        self._numbers = itertools.count()
        self._requests_of_row: dict[int, int] = {}
        self._progress, self._since = 0.0, self._loop.time()
        self._marks, self._versions = [0.0], [0]
        """Progress at which each version began to sample, and the versions."""
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._busy = self._sampled_sum = 0.0
        self.request_seconds = 0.0
        """Number of requests in flight, integrated over time."""

    @property
    def version(self) -> int:
        """The policy version that samples now."""
        return self._versions[-1]

    @property
    def running(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._heap)

    @property
    def busy_seconds(self) -> float:
        """Seconds with a request in flight, pauses excluded."""
        self._advance()
        return self._busy

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled so far, those of requests in flight included."""
        self._advance()
        return int(self._sampled_sum)

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig) -> Sampled:
        """Ends after as many decode steps as the completion's length; `sampling` is ignored."""
        row = int(prompt[0])
        number = self._requests_of_row.get(row, 0)
        self._requests_of_row[row] = number + 1
        length = int(self._lengths[row, number % self._lengths.shape[1]])
        self._advance()
        future: asyncio.Future[Sampled] = self._loop.create_future()
        request = _Request(self._progress + length, next(self._numbers), self._progress, length, future)
        heapq.heappush(self._heap, request)
        self._set_timer()
        try:
            return await future
        except asyncio.CancelledError:
            self._advance()
            self._heap = [r for r in self._heap if r is not request]
            heapq.heapify(self._heap)
            self._set_timer()
            raise

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        """Apply a version; requests in flight continue after the pause (`keep_kv`)."""
        self._advance()
        self._paused, in_flight = True, self.running
        self._set_timer()
        await asyncio.sleep(self._speed.update_pause)
        self._advance()
        self._paused = False
        self._marks.append(self._progress)
        self._versions.append(version)
        self._set_timer()
        return UpdateReport(version, 0.0, self._speed.update_pause, in_flight)

    async def probe(self, limit: float) -> None:
        """Returns at once: a simulated engine does not hang."""

    async def close(self) -> None:
        """Nothing to stop: a run ends after its requests."""

    def _step_seconds(self) -> float:
        return self._speed.base + self._speed.each * len(self._heap)

    def _advance(self) -> None:
        """Update progress and the sums to the present time."""
        elapsed, self._since = self._loop.time() - self._since, self._loop.time()
        self.request_seconds += elapsed * len(self._heap)
        if self._heap and not self._paused:
            steps = elapsed / self._step_seconds()
            self._progress += steps
            self._sampled_sum += steps * len(self._heap)
            self._busy += elapsed

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._paused:
            left = max(0.0, self._heap[0].ends - self._progress)
            self._timer = self._loop.call_later(left * self._step_seconds(), self._end_first)

    def _end_first(self) -> None:
        self._timer = None
        self._advance()
        self._progress = max(self._progress, self._heap[0].ends)  # the timer may be early by a rounding error
        while self._heap and self._heap[0].ends <= self._progress:
            request = heapq.heappop(self._heap)
            if not request.future.done():
                request.future.set_result(self._sampled(request))
        self._set_timer()

    def _sampled(self, request: _Request) -> Sampled:
        sampled_at = request.began + np.arange(1, request.length + 1)
        versions = np.array(self._versions, np.int32)[np.searchsorted(self._marks, sampled_at, side="left") - 1]
        ids, logprobs = np.ones(request.length, np.int32), np.zeros(request.length, np.float32)
        reason: Literal["stop", "length"] = "length" if request.length >= self._lengths.max() else "stop"
        return Sampled(ids, logprobs, versions, reason)
