"""The one thread that computes, and the way in and out of it.

    event loop(s)                                   decode thread
      submit(job) ──► inbox (locked, notifies) ──►  turn:  take the inbox; while nothing is to be done, wait for it
      cancel(job) ──►                                      score what was asked
                                                           update the weights, if that is due
      job.future  ◄── completion, scores, report ───       admit requests, unless they are drained
                                                           step: one token a row

Invariants:

* a submitted job's future is set exactly once: with its result, or with `EngineFailure` when the thread ends before;
* after the thread has ended, for whatever reason, `submit` raises `EngineFailure` with that reason;
* weights change only between two steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from headrace_core.errors import TimedOut

from ..busy_clock import BusyClock
from ..engine import EngineFailure, Scored, UpdateMode
from .batch_slots import Generation
from .decoder import Decoder
from .policy_model import StagedWeights

IDLE_WAIT_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Scoring:
    """Log-probabilities of tokens[start:] are asked for; `future` carries them."""

    tokens: npt.NDArray[np.int32]
    start: int
    temperature: float
    future: Future[Scored] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class WeightUpdate:
    """Staged weights are to become `version`; `future` carries (seconds without a token, requests in flight)."""

    version: int
    staged: StagedWeights
    mode: UpdateMode
    deadline: float
    """`time.monotonic()` until when the requests in rows must have been drained."""
    future: Future[tuple[float, int]] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class Probe:
    """Whether the thread still takes its turns is asked; `future` is set in the next one."""

    future: Future[None] = field(default_factory=Future)


Job: TypeAlias = Generation | Scoring | WeightUpdate | Probe


class DecodeThread:
    """Runs `load()`'s decoder with `threads` compute threads until it is closed or fails."""

    def __init__(self, load: Callable[[], Decoder], threads: int) -> None:
        self.ready: Future[Decoder] = Future()
        self.ready.set_running_or_notify_cancel()
        self.busy = BusyClock()
        self._load = load
        self._compute_threads = threads
        self._changed = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._withdrawn: deque[Job] = deque()
        self._open: set[Job] = set()
        self._scorings: list[Scoring] = []
        self._update: WeightUpdate | None = None
        self._closing = False
        self._ended: str | None = None
        # A daemon: a load that hangs in a library must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="headrace-decode", daemon=True)

    @property
    def in_flight(self) -> int:
        """Generations and scorings submitted and not yet ended."""
        with self._changed:
            return sum(not isinstance(job, WeightUpdate | Probe) for job in self._open)

    def start(self) -> None:
        """Begin to load; `ready` tells the outcome."""
        self._thread.start()

    def check(self) -> None:
        """Raise `EngineFailure` with the reason if the thread has ended or is closing."""
        if self._ended is not None:
            raise EngineFailure(self._ended)
        if self._closing:
            raise EngineFailure("the engine was closed")

    def submit(self, job: Job) -> None:
        """Hand `job` over. From here its future is set exactly once, and cannot be cancelled: see `cancel`."""
        with self._changed:
            self.check()
            job.future.set_running_or_notify_cancel()
            self._open.add(job)
            self._inbox.append(job)
            self._changed.notify()
        if not isinstance(job, WeightUpdate | Probe):
            self.busy.enter()
        job.future.add_done_callback(lambda _: self._forget(job))

    def cancel(self, job: Job) -> None:
        """Nobody waits for `job` any more: free what it holds, unless it has ended."""
        with self._changed:
            if job in self._open:
                self._withdrawn.append(job)
                self._changed.notify()

    def close(self, timeout: float) -> None:
        """Stop and join the thread; raises `EngineFailure` if it does not end within `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._end("the engine was closed")
            raise EngineFailure(f"the decode thread did not end within {timeout:g} s of close")

    def _run(self) -> None:
        reason, cause = "the engine was closed", None
        try:
            torch.set_num_threads(self._compute_threads)
            decoder = self._load()
            self.ready.set_result(decoder)
            with torch.inference_mode():
                while self._take(decoder):
                    self._turn(decoder)
        except BaseException as error:  # whatever it was, every caller in flight is told: none may wait for ever
            reason, cause = f"the decode thread failed: {type(error).__name__}: {error}", error
        finally:
            self._end(reason, cause)

    def _turn(self, decoder: Decoder) -> None:
        if self._scorings:
            self._score(decoder)
        draining = self._update is not None and self._apply(decoder, self._update)
        if not draining:
            decoder.admit()
        decoder.step()

    def _take(self, decoder: Decoder) -> bool:
        """Take what has come in, waiting for it while there is nothing to do. False: close."""
        with self._changed:
            while not (self._inbox or self._withdrawn or self._closing or self._update):
                if decoder.running or decoder.waiting:
                    break
                self._changed.wait(IDLE_WAIT_SECONDS)
            jobs, self._inbox = self._inbox, deque()
            withdrawn, self._withdrawn = self._withdrawn, deque()
        for job in jobs:
            self._route(decoder, job)
        for job in withdrawn:
            self._drop(decoder, job)
        return not self._closing

    def _route(self, decoder: Decoder, job: Job) -> None:
        if isinstance(job, Generation):
            decoder.accept(job)
        elif isinstance(job, Scoring):
            self._scorings.append(job)
        elif isinstance(job, Probe):
            job.future.set_result(None)
        else:
            self._update = job

    def _drop(self, decoder: Decoder, job: Job) -> None:
        if job.future.done():
            return
        if isinstance(job, Generation):
            decoder.cancel(job)
        elif isinstance(job, Scoring):
            self._scorings.remove(job)
        elif self._update is job:
            self._update = None
        job.future.set_exception(CancelledError())

    def _score(self, decoder: Decoder) -> None:
        scorings, self._scorings = self._scorings, []
        scores = decoder.model.score([(job.tokens, job.start, job.temperature) for job in scorings])
        for job, score in zip(scorings, scores, strict=True):
            job.future.set_result(Scored(score, decoder.version))

    def _apply(self, decoder: Decoder, update: WeightUpdate) -> bool:
        """Apply `update` if that can be done now; True: it waits for the rows to drain."""
        if update.mode == "drain" and decoder.running:
            if time.monotonic() < update.deadline:
                return True
            self._update = None
            update.future.set_exception(
                TimedOut(f"version {update.version} is not applied: {decoder.running} requests did not drain in time")
            )
            return False
        in_flight, began = self.in_flight, time.perf_counter()
        with self.busy.paused():
            decoder.swap(update.version, update.staged, "recompute" if update.mode == "recompute" else "keep")
        self._update = None
        update.future.set_result((time.perf_counter() - began, in_flight))
        return False

    def _forget(self, job: Job) -> None:
        with self._changed:
            self._open.discard(job)
        if not isinstance(job, WeightUpdate | Probe):
            self.busy.leave()

    def _end(self, reason: str, cause: BaseException | None = None) -> None:
        with self._changed:
            self._ended = self._ended or reason
            waiting: list[Future[Any]] = [job.future for job in self._open]
        for future in [self.ready, *waiting]:
            if not future.done():
                failure = EngineFailure(reason)
                failure.__cause__ = cause
                future.set_exception(failure)
