"""What a grader makes of a completion, and what two processes of the rewards service are asked: to check a grader
(`python -m headrace_rewards check`), and to make the rows of a task (`python -m headrace_rewards tasks`).

    stdin   one request, JSON            stdout   one report, JSON; the exit status is 0 whenever there is one
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
"""exception: the code raised · timeout: it took too long · crashed: its process ended · invalid_value: it returned no
finite number · bad_input: the row lacks what the grader asks for · bad_output: it flooded its output, or broke the
protocol · unavailable: nothing could be asked (closed, or its process does not start any more)."""


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Score(msgspec.Struct, frozen=True, tag="score"):
    """The reward of one sample; value and components are finite (else `ValueError`)."""

    value: float
    components: dict[str, float] = {}
    """What the value is made of, by name; empty where the reward gave a plain number."""
    sample_fault: str = ""
    """What the grader reads and the completion lacks (JSON, or a key in it), in words: it scores 0 then, or counts as 0
    in a sum. OpenAI calls it `sample_parse_error`. Empty: it lacks nothing."""
    notes: dict[str, str] = {}
    """Texts that the reward gave beside its numbers, by name: shown with the completion, within the bounds of
    `headrace_rewards.user_code.notes`."""
    likelihood: Likelihood | None = None
    """How the value follows from the reference answer's likelihood; None: it does not."""

    def __post_init__(self) -> None:
        for number in (self.value, *self.components.values()):
            if not math.isfinite(number):
                raise ValueError(f"a score must be finite, not {number}")


class NotApplicable(msgspec.Struct, frozen=True, tag="not_applicable"):
    """The reward has no opinion on this sample."""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The reward could not be computed; `message` is one line.

    `traceback` holds the traceback's last lines; for a process that died, the last lines it printed.
    """

    kind: FailureKind
    message: str
    traceback: str = ""


Outcome = Score | NotApplicable | Failure


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

Sample = TypeVar("Sample")
"""A mapping for who asks, `headrace_rewards.protocol.Sample` for who answers."""


class RequestProblem(msgspec.Struct, frozen=True):
    """Why a grader cannot be used, or a task has no rows; `param` names the field, from `grader` on."""

    message: str
    param: str | None
    code: str

    @classmethod
    def of(cls, error: HeadraceError) -> RequestProblem:
        """A fault of the user's."""
        return cls(error.message, error.param, error.code)


class CheckRequest(msgspec.Struct, Generic[Sample], kw_only=True, forbid_unknown_fields=True):
    """A grader, and completions that it is tried on."""

    grader: Any
    samples: Sequence[Sample] = ()
    groups: Sequence[int] | None = None
    """How many neighbours among the samples are completions of one prompt: those are scored together. None: all."""
    rules: RewardPermissions = msgspec.field(default_factory=RewardPermissions)
    tokenizer: str | None = None
    """A tokenizer.json, which makes the token ids of the samples; without it they have those that are given."""
    rehearsal: bool = False
    """Whether no server is asked, and groups that are not scored in time are given up."""
    seconds: float | None = None
    """For all groups together; without it they take as long as they take."""


class CheckedGrader(msgspec.Struct):
    """A grader of those that were checked, or one that it holds."""

    name: str
    type: str
    failures: list[Failure] = []
    """Its own: where a grader that it holds failed, those of the same group are that one's."""


class CheckReport(msgspec.Struct):
    """`ok`: the grader is well formed, and its code could be imported; a sample that failed leaves it true."""

    ok: bool
    error: RequestProblem | None = None
    grader: dict[str, Any] | None = None
    """Complete, with absolute paths and the form that was found; None of one that is not `ok`."""
    outcomes: list[Outcome] = []
    """One a sample."""
    seconds: list[float] = []
    """That each group took."""
    parts: list[CheckedGrader] = []
    """Those that a grader holds come before it."""
    cannot: str | None = None
    """Of a rehearsal: why the grader cannot work at all."""
    remarks: list[str] = []
    """Of a rehearsal: what else was seen."""
    ignored: list[str] = []
    """What of the description has no effect."""


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RowsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The rows of a task; the file at `path` is made, or replaced."""

    reference: str
    path: str
    max_bytes: int
    rules: RewardPermissions = msgspec.field(default_factory=RewardPermissions)


class RowsReport(msgspec.Struct):
    """How many rows the file has."""

    ok: bool
    error: RequestProblem | None = None
    rows: int = 0
