"""Tries a grader on a few completions: which of the graders nested in it fail, and whether it can work at all.

    RecordingBuilder.build(spec) ─► a reward in which every nested grader records its outcomes

A grader *cannot work* if it fails on every completion that it is tried on, each time with the same failure: then the
failure does not depend on what the model writes, and no completion will be scored. To conclude this, the completions
have to be of different kinds, an empty one and the right answer among them. A grader that fails on some of them may
work well on others. Failures of the kind `invalid_value` are the same whatever the value was: one that is never a
score, such as a formula that always divides by zero.

A rehearsal sends no request to a server, since an answer may cost money. It opens a connection, and fills the
templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import CheckedGrader, Failure, Outcome

from .graders.function import FunctionSpec, store_code
from .graders.spec import GraderSpec
from .graders.verifier_free.base import UNMEASURED, LikelihoodSpec
from .protocol import Reward, Sample
from .registry import Builder
from .user_code.argument_binding import Form

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b")
_SHOWN_CHARACTERS = 60
_MESSAGES_EXPECTED = ("TypeError: string ind", "AttributeError: 'str' object")


@runtime_checkable
class Rehearsable(Protocol):
    """A reward that behaves differently in a rehearsal: it calls a server, or does not always call every grader nested
    in it."""

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, without a request to a server: `NotApplicable` if the request could be sent, else the
        outcome that `score` would return."""
        ...


@dataclass(frozen=True, slots=True)
class RecordingBuilder(Builder):
    """Makes rewards that record their outcomes. In `recorded`, nested graders come before the grader around them."""

    rehearsal: bool = False
    recorded: list[RecordedReward] = field(default_factory=list)

    def build(self, spec: GraderSpec) -> Reward:
        first = len(self.recorded)
        reward = Builder.build(self, spec)
        self.recorded.append(RecordedReward(reward, spec, self.recorded[first:], self.rehearsal))
        return self.recorded[-1]


class RecordedReward:
    """A reward that records its outcomes."""

    def __init__(self, reward: Reward, spec: GraderSpec, held: Sequence[RecordedReward], rehearsal: bool) -> None:
        self.spec = spec
        self.tried: list[tuple[str, Outcome]] = []
        """(completion, outcome) of the groups in which no nested grader failed: else the failure is not its own."""
        self._reward = reward
        self._held = held
        self._rehearsal = rehearsal

    async def start(self) -> None:
        await self._reward.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        before = self._nested_failures()
        asks = self._rehearsal and isinstance(self._reward, Rehearsable)
        outcomes = await (self._reward.rehearse(samples) if asks else self._reward.score(samples))  # type: ignore[attr-defined]
        if self._nested_failures() == before:
            self.tried += [(sample.output_text, outcome) for sample, outcome in zip(samples, outcomes, strict=True)]
        return outcomes

    async def close(self) -> None:
        await self._reward.close()

    @property
    def part(self) -> CheckedGrader:
        """This grader's part of the report."""
        return CheckedGrader(self.spec.name, self.spec.type, self.failures)

    @property
    def failures(self) -> list[Failure]:
        """The failures among `tried`."""
        return [outcome for _, outcome in self.tried if isinstance(outcome, Failure)]

    @property
    def always_raised(self) -> bool:
        """Whether the user's code raised an exception, the same or different ones, on every completion that is not
        empty."""
        outcomes = [outcome for text, outcome in self.tried if text]
        return bool(outcomes) and all(isinstance(o, Failure) and o.kind == "exception" for o in outcomes)

    @property
    def wants_messages(self) -> bool:
        """Whether the code always raised, and at least once like code that expects messages and gets text:
        `completion[0]["content"]`."""
        said = (failure.message for failure in self.failures)
        return self.always_raised and any(message.startswith(_MESSAGES_EXPECTED) for message in said)

    def cannot_work(self, item: dict[str, Any]) -> Failure | None:
        """The failure that does not depend on what the model writes; `None` if there is none. `item`: the row of data
        that the grader was tried on."""
        if isinstance(self.spec, LikelihoodSpec) and (lacking := self.spec.lacks(item)):
            return Failure("bad_input", lacking)
        failures = self.failures
        alike = {(f.kind, "" if f.kind == "invalid_value" else _ADDRESS.sub("0x…", f.message)) for f in failures}
        if len(failures) < max(len(self.tried), 2) or len(alike) != 1 or UNMEASURED in failures:
            return None
        return failures[0]

    def remarks(self) -> str | None:
        """A remark on a grader that failed on some completions, or on all in different ways; `None` if none failed."""
        failed = [(text, outcome) for text, outcome in self.tried if isinstance(outcome, Failure)]
        if not failed or UNMEASURED in self.failures:
            return None
        text, first = failed[0]
        said = (
            repr(text[:_SHOWN_CHARACTERS]) + ("…" if len(text) > _SHOWN_CHARACTERS else "") if text else "an empty text"
        )
        return (
            f"grader '{self.spec.name}' failed on {len(failed)} of {len(self.tried)} completions that it was tried on, "
            f"the first of them {said}: {first.kind}: {first.message}"
        )

    def _nested_failures(self) -> int:
        return sum(len(part.failures) for part in self._held)


def refusal(part: RecordedReward, failure: Failure) -> str:
    """The message that rejects a job with this grader: why, and what to change."""
    form = getattr(part.spec, "form", None)
    hint = {
        "exception": "; code that trips over a text of the wrong form should return 0, or None",
        "timeout": "; raise its timeout, or make it faster",
        "unavailable": "; start the server first, or set the grader's check_connection to false where it starts later",
    }.get(failure.kind, "")
    if failure.kind == "exception" and form is not None and failure.message.startswith(_MESSAGES_EXPECTED):
        hint += "; for conversations, lists of messages, set its form to 'messages'"
    traceback = f"\n{failure.traceback}" if failure.traceback else ""
    return (
        f"grader '{part.spec.name}' cannot work: tried on the first row, it failed in the same "
        f"way on all six completions, empty ones and plausible answers: {failure.kind}: {failure.message}{hint}. With "
        f"max_reward_failures = 1 the job is taken all the same.{traceback}"
    )


def with_form(spec: GraderSpec, chosen: frozenset[int], form: Form) -> GraderSpec:
    """The grader, with `form` set in itself and in each nested grader whose `id()` is in `chosen`."""
    return with_fields(spec, lambda of: {"form": form} if id(of) in chosen else {})


def with_stored_code(spec: GraderSpec, rules: RewardPermissions, folder: Path) -> GraderSpec:
    """Store the code of the grader's functions in `folder`; returns the grader with the code's hash in it."""
    return with_fields(
        spec, lambda of: {"sha256": store_code(of, rules, folder).sha256} if isinstance(of, FunctionSpec) else {}
    )


def with_fields(spec: GraderSpec, change: Callable[[GraderSpec], dict[str, Any]]) -> GraderSpec:
    """A copy of the grader in which it and each nested grader have the fields that `change` returns for them."""
    changed = change(spec)
    for name, value in spec:
        if isinstance(value, GraderSpec):
            changed[name] = with_fields(value, change)
        elif isinstance(value, dict) and any(isinstance(held, GraderSpec) for held in value.values()):
            changed[name] = {key: with_fields(held, change) for key, held in value.items()}
    return spec.model_copy(update=changed) if changed else spec
