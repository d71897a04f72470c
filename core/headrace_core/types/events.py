"""The `data` of a job's events, one struct for each kind: what programs read. An event's message is for people, and its
wording may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from .metrics import EvaluationMetrics, StepMetrics

Data = TypeVar("Data", bound=msgspec.Struct)
RecoveryAction = Literal["reissue", "restart", "abort_update", "place_again", "replace_controller"]
"""reissue: the leases of an unresponsive worker were issued again · restart: a worker that was unresponsive, or that
others waited for, was restarted · abort_update: a weight update was abandoned and generation continued · place_again:
workers were placed anew after their placement was lost · replace_controller: a controller without heartbeats was
replaced."""


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class WorkerReady(msgspec.Struct, frozen=True):
    """A worker has started and is ready."""

    worker: str
    facts: dict[str, Any]
    """What the worker reports about itself: `pid`, `seconds`, `engine`, …, and for a learner's further ranks
    `"rank 1": "pid 123"`. In the event's data they are fields beside `worker`."""

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> WorkerReady | None:
        """Decodes an event's data; None if it is of another kind."""
        if data is None or not {"worker", "pid"} <= data.keys():
            return None
        return cls(data["worker"], {name: fact for name, fact in data.items() if name != "worker"})

    @property
    def pids(self) -> dict[str, int]:
        """Process ids: of the worker by its name, of a learner's further ranks as `rank-1`, …"""
        ranks = {name: fact for name, fact in self.facts.items() if name.startswith("rank ")}
        return {self.worker: self.facts["pid"]} | {
            name.replace(" ", "-"): int(fact.removeprefix("pid ")) for name, fact in ranks.items()
        }


class Restarted(msgspec.Struct, frozen=True):
    """A worker, or a component of the service, failed and is restarted."""

    worker: str
    cause: str
    restart: int
    """1 for the first, …"""
    of: int
    """Maximum number of restarts."""
    delay: float
    """Seconds before the restart."""


class CommandLost(msgspec.Struct, frozen=True):
    """Redis started without the last command of its append-only file, which was incomplete."""

    worker: str
    cut: str
    """Where the file was truncated, in words."""


class Wait(msgspec.Struct, frozen=True):
    """One edge of the wait graph: `who` has waited for `for_` for so many seconds."""

    who: str
    for_: str = msgspec.field(name="for")
    seconds: float

    def __str__(self) -> str:
        return f"{self.who} waits for {self.for_} ({self.seconds:.0f} s)"


class Standstill(msgspec.Struct, frozen=True):
    """A job made no progress: who waited for whom, and the recovery action, if one was taken."""

    waits: Sequence[Wait]
    act: RecoveryAction | UnsetType = UNSET


# ── what a job waits for, or pauses for ──────────────────────────────────────────────────────────────────────────────


class JobPaused(msgspec.Struct, frozen=True):
    """A job paused by itself."""

    reason: str
    """The error's code."""
    who: str
    """The worker that cannot continue, or `job`."""


class DiskWait(msgspec.Struct, frozen=True):
    """A worker waits for free space."""

    worker: str
    reason: str
    """The error's code."""
    seconds: float
    """The longest it will wait."""


class MemoryWait(msgspec.Struct, frozen=True, kw_only=True):
    """New groups have begun to wait for memory in Redis, or no longer do."""

    reason: str = "memory"
    bytes: int
    """Size of the job's encoded groups."""
    share: int
    """Upper limit of `bytes`."""
    held_back: int
    """Admissions that gave no group for lack of memory."""


# ── rows and rewards ─────────────────────────────────────────────────────────────────────────────────────────────────


class RewardFailure(msgspec.Struct, frozen=True):
    """A completion has no reward."""

    kind: str
    """The kind of failure, see docs/rewards.md."""
    error: str
    traceback: str
    group: int | UnsetType = UNSET
    """Unset in an evaluation."""


class RewardsFailed(msgspec.Struct, frozen=True):
    """A job ended because too many rewards failed."""

    failures: dict[str, int]
    """Number of completions by kind of failure, most frequent first."""
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
    """The row whose reference answer leaves the fewest tokens of the context for a completion."""

    row: int
    line: int
    tokens: int
    """How many tokens it leaves."""


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class IdleStep(msgspec.Struct, frozen=True):
    """A step did not change the policy."""

    step: int
    idle: str
    """Why: `unscored`, `equal` or `too old`."""


class StepStaleness(msgspec.Struct, frozen=True):
    """Ages of the tokens that contributed to a step's gradient, in policy versions."""

    age_mean: float
    age_max: int
    bound: int


class StepSummary(msgspec.Struct, frozen=True):
    """A step's figures, under the names that OpenAI's jobs use."""

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
        """The summary of a step whose bound was `max_staleness`."""
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
    """An evaluation, with its mean reward also under the name that OpenAI's jobs use."""

    full_valid_mean_reward: float | None

    @classmethod
    def of(cls, metrics: EvaluationMetrics) -> EvaluationSummary:
        """The summary of an evaluation."""
        return cls(**msgspec.structs.asdict(metrics), full_valid_mean_reward=metrics.reward_mean)


# ── encoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(data: msgspec.Struct) -> dict[str, Any]:
    """Encodes a struct as an event's `data`."""
    if isinstance(data, WorkerReady):
        return {"worker": data.worker, **data.facts}
    plain: dict[str, Any] = msgspec.to_builtins(data)
    return plain


def decoded(data: Mapping[str, Any] | None, kind: type[Data]) -> Data | None:
    """Decodes an event's `data`; None if it is of another kind."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError:
        return None
