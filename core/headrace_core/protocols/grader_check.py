"""The outcome of grading a completion, and the protocol of two programs of the rewards service: one checks a grader
(`python -m headrace_rewards check`), the other makes the rows of a task (`python -m headrace_rewards tasks`).

    stdin   one request as JSON          stdout   one report as JSON; the exit status is 0 if there is a report
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

from ..config.reward_permissions import RewardPermissions
from ..errors import HeadraceError
from ..types.likelihood import Likelihood

FailureKind = Literal["exception", "timeout", "crashed", "invalid_value", "bad_input", "bad_output", "unavailable"]
"""exception: the code raised an error · timeout: it took too long · crashed: its process ended · invalid_value: it
returned no number, or one that cannot be a score (`score_fault`) · bad_input: the row lacks a field that the grader
reads · bad_output: it flooded its output, or broke the protocol · unavailable: the grader could not be run (it is
closed, or its process no longer starts)."""

MAX_SCORE = 1e15
"""Largest magnitude of a score and of its components. Of larger ones, what statistics and the learner compute (sums,
squares, gradients in float32) would not be finite."""

# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def score_fault(number: float) -> str | None:
    """Why a number cannot be a score or a component of one, as the rest of a sentence: "… is nan, which …"; `None` if
    it can."""
    if not math.isfinite(number):
        return "which is not a finite number"
    if abs(number) > MAX_SCORE:
        return f"which is beyond ±{MAX_SCORE:g}: scale the reward"
    return None


class Score(msgspec.Struct, frozen=True, tag="score"):
    """The reward of one sample. Raises `ValueError` for a value or a component that has a `score_fault`."""

    value: float
    components: dict[str, float] = {}
    """The components of the value, by name; empty if the reward returned a plain number."""
    sample_fault: str = ""
    """What the completion lacks of what the grader reads (JSON, or a key in it), in words. Such a completion scores 0,
    or counts as 0 in a sum. OpenAI calls it `sample_parse_error`. Empty: nothing is missing."""
    notes: dict[str, str] = {}
    """Texts that the reward returned with its numbers, by name, shown with the completion; their size is limited by
    `headrace_rewards.user_code.notes`."""
    likelihood: Likelihood | None = None
    """How the value depends on the reference answer's likelihood; None: it does not."""

    def __post_init__(self) -> None:
        for number in (self.value, *self.components.values()):
            if (fault := score_fault(number)) is not None:
                raise ValueError(f"a score or a component is {number}, {fault}")


class NotApplicable(msgspec.Struct, frozen=True, tag="not_applicable"):
    """The reward does not apply to this sample, which is not a score of 0."""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The reward could not be computed. `message` is one line.

    `traceback` has the last lines of the traceback, or for a process that died, the last lines it printed.
    """

    kind: FailureKind
    message: str
    traceback: str = ""


Outcome = Score | NotApplicable | Failure


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

Sample = TypeVar("Sample")
"""A mapping on the requesting side, `headrace_rewards.protocol.Sample` on the answering side."""


class RequestProblem(msgspec.Struct, frozen=True):
    """Why a grader cannot be used, or a task's rows cannot be made. `param` is the path of the field, e.g.
    `grader.name`."""

    message: str
    param: str | None
    code: str

    @classmethod
    def of(cls, error: HeadraceError) -> RequestProblem:
        """The problem that `error` describes."""
        return cls(error.message, error.param, error.code)


class CheckRequest(msgspec.Struct, Generic[Sample], kw_only=True, forbid_unknown_fields=True):
    """A grader to check, and completions to try it on."""

    grader: Any
    samples: Sequence[Sample] = ()
    groups: Sequence[int] | None = None
    """Sizes of consecutive groups of samples: the samples of a group are completions of one prompt and are scored
    together. None: all samples are one group."""
    rules: RewardPermissions = msgspec.field(default_factory=RewardPermissions)
    tokenizer: str | None = None
    """Path of a tokenizer.json that makes the samples' token ids; None: the samples have theirs already."""
    rehearsal: bool = False
    """Call no server, and give up groups that are not scored in time."""
    seconds: float | None = None
    """Time limit for all groups together; None: no limit."""


class CheckedGrader(msgspec.Struct):
    """One of the graders that were checked: the grader of the request, or a component of it."""

    name: str
    type: str
    failures: list[Failure] = []
    """The grader's own failures. Those caused by a component of it are listed with the component only."""


class CheckReport(msgspec.Struct):
    """The result of a check. `ok`: the grader is well formed and its code could be imported, even if samples failed."""

    ok: bool
    error: RequestProblem | None = None
    grader: dict[str, Any] | None = None
    """The grader's description with every default, absolute paths and the detected form; None unless `ok`."""
    outcomes: list[Outcome] = []
    """One for each sample."""
    seconds: list[float] = []
    """Duration of each group."""
    parts: list[CheckedGrader] = []
    """All graders that were checked; a grader's components come before it."""
    cannot: str | None = None
    """Rehearsals only: why the grader cannot work at all."""
    remarks: list[str] = []
    """Rehearsals only: other observations."""
    ignored: list[str] = []
    """Fields of the description that have no effect."""


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RowsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request to write the rows of a task to the file at `path`, which is created or replaced."""

    reference: str
    path: str
    max_bytes: int
    rules: RewardPermissions = msgspec.field(default_factory=RewardPermissions)


class RowsReport(msgspec.Struct):
    """The result: the number of rows written, or the problem."""

    ok: bool
    error: RequestProblem | None = None
    rows: int = 0
