"""Continuous batching: requests enter and leave the batch between two decode steps. Single-threaded, never blocks.

    accept ──► waiting ── admit: rows free, memory free, and worth a prefill ──► slot table + slot cache
                                                                                    │ step: one token per row
               completion in the request's future ◄── stop token, or its limit ─────┘

Invariants:

* every accepted request ends exactly once: its future gets the completion, or `cancel` drops it;
* requests are admitted in the order in which they came;
* all tokens of a request but the last are in the cache before its next token is sampled;
* cached keys and values belong to one request only, so that those of older weights remain only in its own row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from ..engine import EngineConfig, RequestRefused
from ..json_constraint import JsonConstraint
from ..sampling import sample
from .batch_slots import Generation, IntArray, SlotTable, admission_pays
from .policy_model import PolicyModel, StagedWeights


def _constrained(
    requests: Sequence[Generation], step: Callable[[JsonConstraint, int], None]
) -> dict[int, RequestRefused]:
    """Call `step` for each request with a constraint. Returns errors by the request's index; the others continue."""
    errors: dict[int, RequestRefused] = {}
    for index, request in enumerate(requests):
        if request.constraint is not None:
            try:
                step(request.constraint, index)
            except RequestRefused as error:
                errors[index] = error
    return errors


class Decoder:
    """Decodes requests on `model`, whose initial weights are `config.version`."""

    def __init__(self, model: PolicyModel, config: EngineConfig) -> None:
        self.model = model
        self.version = config.version
        self._table = SlotTable(config.max_running, config.max_model_len, model.stop_ids, config.seed)
        self._waiting: deque[Generation] = deque()
        self._steps_waited = 0
        self.sampled_tokens = 0
        """Tokens sampled since the start, those of running requests included."""

    @property
    def running(self) -> int:
        """Number of requests in rows."""
        return self._table.running

    @property
    def waiting(self) -> int:
        """Number of requests accepted and not yet in rows."""
        return len(self._waiting)

    def accept(self, request: Generation) -> None:
        """Queue `request`, which must fit the model's context and vocabulary."""
        self._waiting.append(request)

    def cancel(self, request: Generation) -> None:
        """Drop `request` and free its row. Does nothing if it has ended."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._table.requests:
            self._free(np.array([self._table.requests.index(request)]))

    def admit(self) -> None:
        """Prefill waiting requests and sample their first tokens, if rows and memory are free and `admission_pays`."""
        candidates = self._candidates()
        if not admission_pays(self.running, len(candidates), self._steps_waited):
            self._steps_waited += bool(candidates)
            return
        self._steps_waited = 0
        first = self.running
        for request in candidates:
            self._waiting.popleft()
            self._table.add(request)
        self.model.cache.reserve(self.running, self._table.max_limit)
        logits = self.model.prefill([request.prompt for request in candidates], first)
        self._sample(slice(first, self.running), logits)

    def step(self) -> None:
        """Sample one token for every row."""
        rows = slice(0, self.running)
        if not self.running:
            return
        positions = self._table.lengths[rows] - 1
        last = self._table.tokens[np.arange(self.running), positions]
        self._sample(rows, self.model.decode(last, positions))

    def swap(self, version: int, staged: StagedWeights, cache: Literal["keep", "recompute"]) -> None:
        """Make `staged` the weights, as `version`. The rows' KV caches are kept, or recomputed."""
        self.model.swap(staged)
        self.version = version
        if cache == "recompute" and self.running:
            cached = [self._table.tokens[row, : self._table.lengths[row] - 1] for row in range(self.running)]
            self.model.recompute(cached)

    def _candidates(self) -> list[Generation]:
        """The waiting requests that fit in rows and memory, in the order in which they came."""
        columns, candidates = self._table.max_limit, list[Generation]()
        for request in self._waiting:
            columns = max(columns, request.limit)
            rows = self.running + len(candidates) + 1
            if rows > self._table.capacity or not self.model.cache.fits(rows, columns):
                break
            candidates.append(request)
        return candidates

    def _sample(self, rows: slice, logits: torch.Tensor) -> None:
        device, table = logits.device, self._table
        requests = table.requests[rows]
        refused = _constrained(requests, lambda constraint, index: constraint.restrict(logits[index]))
        drawn = sample(
            logits,
            torch.from_numpy(table.temperatures[rows]).to(device),
            torch.from_numpy(table.top_ps[rows]).to(device),
            torch.from_numpy(table.uniforms(rows)).to(device),
            measure=table.measures(rows),
        )
        tokens, logprobs, entropies, certainties = (column.cpu().numpy() for column in drawn)
        refused |= _constrained(requests, lambda constraint, index: constraint.accept(int(tokens[index])))
        self.sampled_tokens += len(tokens)
        ended = set(table.append(rows, tokens, logprobs, entropies, certainties, self.version).tolist())
        failed = {rows.start + index: error for index, error in refused.items()}
        for row, error in failed.items():
            table.requests[row].future.set_exception(error)
        for row in ended - failed.keys():
            table.requests[row].future.set_result(table.sampled(row))
        if ended := ended | failed.keys():
            self._free(np.array(sorted(ended)))

    def _free(self, rows: IntArray) -> None:
        sources, destinations = self._table.remove(rows)
        if len(sources):
            self.model.move(sources, destinations, int(self._table.lengths[destinations].max()))
