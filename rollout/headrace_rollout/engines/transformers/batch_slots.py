"""The rows of the decode batch: which request is in which row, and what it has sampled so far. No torch, no threads.

    rows 0 … running-1 hold requests, without gaps:       row │ tokens                        length  prompt
      add     the next row                                 0  │ p p p p s s s ·  ·  ·          7       4
      append  one sampled token to every row               1  │ p p s s s s s s  ·  ·          8       2
      remove  the last rows move into the gaps             2  │ p p p s ·  ·  ·  ·  ·          4       3

Invariants:

* `requests[:running]` and every array agree: column c of row r is the token at position c of the request in row r;
* a row ends with its first stop token, or at `limit` tokens, whichever comes first, and is reported as ended once;
* each operation of a step is one numpy operation over all rows, so that its cost hardly grows with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..engine import Sampled, SamplingConfig

if TYPE_CHECKING:  # this module needs no torch
    from ..json_constraint import JsonConstraint

IntArray = npt.NDArray[np.int64]
OnToken = Callable[[int, float], None]
"""Called by the decode thread with a token id and its log-probability."""
ADMISSION_SHARE = 8
ADMISSION_PATIENCE = 8


@dataclass(slots=True, eq=False)
class Generation:
    """One generation request, from its acceptance to its end. `future` gets the completion or the error."""

    prompt: npt.NDArray[np.int32]
    """[P] token ids."""
    sampling: SamplingConfig
    on_token: OnToken | None = None
    constraint: JsonConstraint | None = None
    """Constrains the completion to a JSON schema."""
    future: Future[Sampled] = field(default_factory=Future)
    uniforms: npt.NDArray[np.float64] | None = None
    """[max_tokens], the request's own random numbers. None: it has no seed, and uses the engine's."""

    def __post_init__(self) -> None:
        # Drawn in advance, so that a seeded request samples the same tokens whatever else is in the batch.
        if self.sampling.seed is not None:
            self.uniforms = np.random.default_rng(self.sampling.seed).random(self.sampling.max_tokens)

    @property
    def limit(self) -> int:
        """Maximum number of tokens, prompt included."""
        return len(self.prompt) + self.sampling.max_tokens


def admission_pays(running: int, candidates: int, steps_waited: int) -> bool:
    """Whether to prefill `candidates` waiting requests now, while `running` rows are decoding.

    A prefill costs about as much as a decode step, however few prompts it has. So several rows are filled at a time: as
    soon as they are an eighth of the batch, or the first of them has waited eight steps.
    """
    if candidates == 0:
        return False
    return candidates * ADMISSION_SHARE >= running or steps_waited >= ADMISSION_PATIENCE


class SlotTable:
    """Rows for at most `capacity` requests of at most `max_len` tokens each; `stop_ids` end every request."""

    def __init__(self, capacity: int, max_len: int, stop_ids: tuple[int, ...], seed: int) -> None:
        self.capacity = capacity
        self.requests: list[Generation] = []
        self.tokens = np.zeros((capacity, max_len), np.int32)
        self.lengths: IntArray = np.zeros(capacity, np.int64)
        self.temperatures = np.ones(capacity, np.float32)
        self.top_ps = np.ones(capacity, np.float32)
        self._logprobs = np.zeros((capacity, max_len), np.float32)
        self._entropies = np.zeros((capacity, max_len), np.float32)
        self._certainties = np.zeros((capacity, max_len), np.float32)
        self._versions = np.zeros((capacity, max_len), np.int32)
        self._limits: IntArray = np.zeros(capacity, np.int64)
        self._stops: IntArray = np.full((capacity, len(stop_ids)), -1, np.int64)
        self._stop_ids = stop_ids
        self._random = np.random.default_rng(seed)

    @property
    def running(self) -> int:
        """Rows in use."""
        return len(self.requests)

    @property
    def max_limit(self) -> int:
        """The largest `limit` of the requests in rows; 0 without any."""
        return max((request.limit for request in self.requests), default=0)

    def add(self, request: Generation) -> int:
        """Put `request` in the next row, and return the row. Raises `ValueError` if all are in use."""
        row, length = self.running, len(request.prompt)
        if row == self.capacity:
            raise ValueError(f"all {self.capacity} rows are in use")
        self.requests.append(request)
        self.tokens[row, :length] = request.prompt
        self.lengths[row] = length
        self.temperatures[row] = request.sampling.temperature
        self.top_ps[row] = request.sampling.top_p
        self._limits[row] = request.limit
        self._set_stops(row, (*self._stop_ids, *request.sampling.stop_token_ids))
        return row

    def uniforms(self, rows: slice) -> npt.NDArray[np.float64]:
        """One random number in [0, 1) for the next token of each of `rows`."""
        requests = self.requests[rows]
        drawn = self._random.random(len(requests))
        for index, request in enumerate(requests):
            if request.uniforms is not None:
                drawn[index] = request.uniforms[self.lengths[rows][index] - len(request.prompt)]
        return drawn

    def measures(self, rows: slice) -> bool:
        """Whether a request in `rows` wants the distributions measured."""
        return any(request.sampling.distribution for request in self.requests[rows])

    def append(
        self,
        rows: slice,
        tokens: npt.NDArray[np.int64],
        logprobs: npt.NDArray[np.float32],
        entropies: npt.NDArray[np.float32],
        certainties: npt.NDArray[np.float32],
        version: int,
    ) -> IntArray:
        """Add the token that each of `rows` sampled by `version`. Returns the rows that ended with it, ascending."""
        positions, indices = self.lengths[rows], np.arange(self.running)[rows]
        self.tokens[indices, positions] = tokens
        self._logprobs[indices, positions] = logprobs
        self._entropies[indices, positions] = entropies
        self._certainties[indices, positions] = certainties
        self._versions[indices, positions] = version
        self.lengths[rows] += 1
        for index, request in enumerate(self.requests[rows]):
            if request.on_token is not None:
                request.on_token(int(tokens[index]), float(logprobs[index]))
        ended = (self._stops[rows] == tokens[:, None]).any(axis=1) | (self.lengths[rows] == self._limits[rows])
        return indices[ended]

    def sampled(self, row: int) -> Sampled:
        """The completion of `row`, for its caller."""
        span = slice(len(self.requests[row].prompt), int(self.lengths[row]))
        tokens = self.tokens[row, span].copy()
        measured = self.requests[row].sampling.distribution
        stopped = bool((self._stops[row] == tokens[-1]).any())
        return Sampled(
            token_ids=tokens,
            logprobs=self._logprobs[row, span].copy(),
            versions=self._versions[row, span].copy(),
            finish_reason="stop" if stopped else "length",
            entropies=self._entropies[row, span].copy() if measured else None,
            certainties=self._certainties[row, span].copy() if measured else None,
        )

    def remove(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Free `rows` (ascending). Returns (sources, destinations) of the rows that moved, so that the cache can
        follow."""
        left = self.running - len(rows)
        destinations = rows[rows < left]
        sources = np.setdiff1d(np.arange(left, self.running), rows)
        columns: tuple[npt.NDArray[Any], ...]
        columns = (self.lengths, self.temperatures, self.top_ps, self._limits, self._stops)
        per_token = (self.tokens, self._logprobs, self._entropies, self._certainties, self._versions)
        for array in (*columns, *per_token):
            array[destinations] = array[sources]
        for source, destination in zip(sources.tolist(), destinations.tolist(), strict=True):
            self.requests[destination] = self.requests[source]
        del self.requests[left:]
        return sources, destinations

    def _set_stops(self, row: int, stop_ids: tuple[int, ...]) -> None:
        missing = len(stop_ids) - self._stops.shape[1]
        if missing > 0:
            self._stops = np.pad(self._stops, ((0, 0), (0, missing)), constant_values=-1)
        self._stops[row] = -1
        self._stops[row, : len(stop_ids)] = stop_ids
