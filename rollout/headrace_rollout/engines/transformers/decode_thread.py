"""The thread that runs the model, and how jobs are passed to it and results back.

    event loop(s)                                   decode thread
      submit(job) ──► inbox (locked, notifies) ──►  turn:  take the inbox; wait while there is nothing to do
      cancel(job) ──►                                      run the scorings
                                                           apply a weight update, if one is due
      job.future  ◄── completion, scores, report ───       admit requests, unless they are being drained
                                                           step: one token for each row

Invariants:

* a submitted job's future is set exactly once: with its result, or with `EngineFailure` if the thread ends before;
* after the thread has ended, `submit` raises `EngineFailure` with the reason;
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

from ..busy_clock import BusyClock
from ..engine import EngineFailure, Scored, UpdateMode
from .batch_slots import Generation
from .decoder import Decoder
from .policy_model import StagedWeights

IDLE_WAIT_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Scoring:
    """A job: compute log-probabilities of tokens[start:]; `future` gets them."""

    tokens: npt.NDArray[np.int32]
    start: int
    temperature: float
    future: Future[Scored] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class WeightUpdate:
    """A job: make staged weights `version`; `future` gets (seconds without a token, requests in flight)."""

    version: int
    staged: StagedWeights
    mode: UpdateMode
    future: Future[tuple[float, int]] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class Probe:
    """A job that only shows that the thread is alive: `future` is set in its next turn."""

    future: Future[None] = field(default_factory=Future)


Job: TypeAlias = Generation | Scoring | WeightUpdate | Probe


class DecodeThread:
    """Runs the decoder that `load` returns, with `threads` compute threads, until it is closed or fails."""

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
        # A daemon thread, because a load that hangs in a library must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="headrace-decode", daemon=True)

    @property
    def in_flight(self) -> int:
        """Number of generations and scorings submitted and not yet ended."""
        with self._changed:
            return sum(not isinstance(job, WeightUpdate | Probe) for job in self._open)

    def start(self) -> None:
        """Start the thread. `ready` gets the decoder once the model is loaded, or the error."""
        self._thread.start()

    def check(self) -> None:
        """Raise `EngineFailure`, with the reason, if the thread has ended or is closing."""
        if self._ended is not None:
            raise EngineFailure(self._ended)
        if self._closing:
            raise EngineFailure("the engine was closed")

    def submit(self, job: Job) -> None:
        """Pass `job` to the thread. Its future cannot be cancelled by itself: use `cancel`."""
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
        """Cancel `job` and free its resources, unless it has ended."""
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
        except BaseException as error:  # any error must reach all callers, or they would wait for ever
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
        """Take the jobs of the inbox; waits while there is nothing to do. False: the thread is to end."""
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
        """Apply `update`, unless it has to wait for the rows to drain, which they do: each step brings them nearer to
        their limits. True: it waits."""
        if update.mode == "drain" and decoder.running:
            return True
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
