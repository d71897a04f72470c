"""The `data` of a job's events, a struct a kind: what programs read. The message beside it is for people, and its words
may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from .metrics import EvaluationMetrics, StepMetrics

Data = TypeVar("Data", bound=msgspec.Struct)
Act = Literal["reissue", "restart", "abort_update", "place_again", "replace_controller"]
"""A silent worker's leases were issued again; a worker that was silent, or that others waited for, was started again; a
weight update was given up and generation went on; workers were placed anew after their place was lost; a controller
that did not beat was replaced."""


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class WorkerReady(msgspec.Struct, frozen=True):
    """A worker's process can work."""

    worker: str
    facts: dict[str, Any]
    """What the worker says of itself. In the event they stand beside its name: `pid`, `seconds`, `engine`, … and of a
    learner's further ranks `"rank 1": "pid 123"`."""

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> WorkerReady | None:
        """As an event holds it; None where `data` is of another kind."""
        if data is None or not {"worker", "pid"} <= data.keys():
            return None
        return cls(data["worker"], {name: fact for name, fact in data.items() if name != "worker"})

    @property
    def pids(self) -> dict[str, int]:
        """The worker's process by its name, and those of further ranks: `rank-1`, …"""
        ranks = {name: fact for name, fact in self.facts.items() if name.startswith("rank ")}
        return {self.worker: self.facts["pid"]} | {
            name.replace(" ", "-"): int(fact.removeprefix("pid ")) for name, fact in ranks.items()
        }


class Restarted(msgspec.Struct, frozen=True):
    """A worker, or a part of the service, failed and is started again."""

    worker: str
    cause: str
    restart: int
    """1 for the first, …"""
    of: int
    """How many there may be."""
    delay: float
    """Seconds before it."""


class CommandLost(msgspec.Struct, frozen=True):
    """Redis started without the last command of its append-only file."""

    worker: str
    cut: str
    """Where the file was cut, in words."""


class Wait(msgspec.Struct, frozen=True):
    """Who waits, and for what."""

    who: str
    for_: str = msgspec.field(name="for")
    seconds: float

    def __str__(self) -> str:
        return f"{self.who} waits for {self.for_} ({self.seconds:.0f} s)"


class Standstill(msgspec.Struct, frozen=True):
    """Who waited for whom, and what was done about it, if something was."""

    waits: Sequence[Wait]
    act: Act | UnsetType = UNSET


# ── what a job waits for, or pauses for ──────────────────────────────────────────────────────────────────────────────


class JobPaused(msgspec.Struct, frozen=True):
    """A job paused by itself."""

    reason: str
    """The error's code."""
    who: str
    """The worker that cannot go on, or `job`."""


class DiskWait(msgspec.Struct, frozen=True):
    """A worker waits for free space."""

    worker: str
    reason: str
    """The error's code."""
    seconds: float
    """For how long at most."""


class MemoryWait(msgspec.Struct, frozen=True, kw_only=True):
    """New groups wait for memory in Redis, or wait no longer."""

    reason: str = "memory"
    bytes: int
    """Of the job's groups."""
    share: int
    """How many there may be."""
    held_back: int
    """Admissions that gave no group for want of it."""


# ── rows and rewards ─────────────────────────────────────────────────────────────────────────────────────────────────


class RewardFailure(msgspec.Struct, frozen=True):
    """A completion has no reward."""

    kind: str
    """Of docs/rewards.md."""
    error: str
    traceback: str
    group: int | UnsetType = UNSET
    """Unset in an evaluation."""


class RewardsFailed(msgspec.Struct, frozen=True):
    """A job ended because too many rewards failed."""

    failures: dict[str, int]
    """Completions by kind, most frequent first."""
    samples: Sequence[RewardFailure]


class RowRefused(msgspec.Struct, frozen=True):
    """The engine cannot serve a row of the training file."""

    group: int
    row: int
    """0 for the first."""
    line: int
    error: str


class RowsRefused(msgspec.Struct, frozen=True):
    """A job ended because too many of its groups could not be generated."""

    rows: Sequence[RowRefused]


class TightRow(msgspec.Struct, frozen=True):
    """The row whose reference answer leaves the least room for a completion."""

    row: int
    line: int
    tokens: int
    """That it leaves."""


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class IdleStep(msgspec.Struct, frozen=True):
    """A step left the policy as it was."""

    step: int
    idle: str
    """Why: `unscored`, `equal` or `too old`."""


class StepStaleness(msgspec.Struct, frozen=True):
    """Ages of the tokens that contributed to a step's gradient, in policy versions."""

    age_mean: float
    age_max: int
    bound: int


class StepSummary(msgspec.Struct, frozen=True):
    """A step, by the names that OpenAI's jobs have for its figures."""

    step: int
    total_steps: int
    train_mean_reward: float | None
    train_reward_std: float | None
    train_loss: float
    entropy: float
    grad_norm: float
    completion_length: float
    trained_tokens: int
    masked_tokens: int
    staleness: StepStaleness

    @classmethod
    def of(cls, metrics: StepMetrics, max_staleness: int) -> StepSummary:
        """Of a step that was bound by `max_staleness`."""
        trained = {int(age): m.tokens - m.masked for age, m in metrics.ages.items() if m.tokens > m.masked}
        mean = sum(age * n for age, n in trained.items()) / max(1, sum(trained.values()))
        return cls(
            step=metrics.step,
            total_steps=metrics.total_steps,
            train_mean_reward=metrics.reward_mean,
            train_reward_std=metrics.reward_std,
            train_loss=metrics.loss,
            entropy=metrics.entropy,
            grad_norm=metrics.grad_norm,
            completion_length=metrics.completion_length,
            trained_tokens=metrics.tokens,
            masked_tokens=metrics.masked_tokens,
            staleness=StepStaleness(mean, max(trained, default=0), max_staleness),
        )


class EvaluationSummary(EvaluationMetrics, frozen=True, kw_only=True):
    """An evaluation, and its mean reward by the name that OpenAI's jobs have for it."""

    full_valid_mean_reward: float | None

    @classmethod
    def of(cls, metrics: EvaluationMetrics) -> EvaluationSummary:
        """Of an evaluation."""
        return cls(**msgspec.structs.asdict(metrics), full_valid_mean_reward=metrics.reward_mean)


# ── in and out ───────────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(data: msgspec.Struct) -> dict[str, Any]:
    """As an event holds it."""
    if isinstance(data, WorkerReady):
        return {"worker": data.worker, **data.facts}
    plain: dict[str, Any] = msgspec.to_builtins(data)
    return plain


def decoded(data: Mapping[str, Any] | None, kind: type[Data]) -> Data | None:
    """None where the data of an event is of another kind."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError:
        return None
