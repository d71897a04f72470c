"""What can be known of a grader by trying it: which of its parts failed on what, and whether it can work at all.

    Watching.build(spec) ─► the reward, with every grader in it watched ─► what each made of which completion

A part *cannot work* where it fails on every completion that it is tried on, always alike: then the failure does not
come from what the model wrote, and no completion will be scored. Completions of different kinds have to be tried for
that, an empty one and the right answer among them. A part that failed on some of them may work well on others.

A rehearsal asks no server anything: an answer may cost money. It connects, and fills the templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import CheckedGrader, Failure, Outcome

from .graders.function import FunctionSpec, keep
from .graders.spec import GraderSpec
from .graders.verifier_free.base import UNMEASURED, LikelihoodSpec
from .protocol import Reward, Sample
from .registry import Builder
from .user_code.argument_binding import Form

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b")
_SHOWN = 60
_TAKEN_FOR_MESSAGES = ("TypeError: string ind", "AttributeError: 'str' object")


@runtime_checkable
class Rehearsed(Protocol):
    """A reward that does something else in a rehearsal: one that asks a server, or would not ask all that it holds."""

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, without a question to a server: `NotApplicable` where it could be asked, else as
        `score`."""
        ...


@dataclass(frozen=True, slots=True)
class Watching(Builder):
    """Makes rewards that are watched; of a grader of graders those that it holds come first in `watched`."""

    rehearsal: bool = False
    watched: list[Watched] = field(default_factory=list)

    def build(self, spec: GraderSpec) -> Reward:
        first = len(self.watched)
        reward = Builder.build(self, spec)
        self.watched.append(Watched(reward, spec, self.watched[first:], self.rehearsal))
        return self.watched[-1]


class Watched:
    """A reward that remembers what it made of which completion."""

    def __init__(self, reward: Reward, spec: GraderSpec, held: Sequence[Watched], rehearsal: bool) -> None:
        self.spec = spec
        self.tried: list[tuple[str, Outcome]] = []
        """(text, outcome) of the groups in which no grader that it holds failed."""
        self._reward = reward
        self._held = held
        self._rehearsal = rehearsal

    async def start(self) -> None:
        await self._reward.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        before = self._failures_held()
        asks = self._rehearsal and isinstance(self._reward, Rehearsed)
        outcomes = await (self._reward.rehearse(samples) if asks else self._reward.score(samples))  # type: ignore[attr-defined]
        if self._failures_held() == before:
            self.tried += [(sample.output_text, outcome) for sample, outcome in zip(samples, outcomes, strict=True)]
        return outcomes

    async def close(self) -> None:
        await self._reward.close()

    @property
    def part(self) -> CheckedGrader:
        """For the report."""
        return CheckedGrader(self.spec.name, self.spec.type, self.failures)

    @property
    def failures(self) -> list[Failure]:
        """Those of `tried`."""
        return [outcome for _, outcome in self.tried if isinstance(outcome, Failure)]

    @property
    def always_raised(self) -> bool:
        """Whether the code raised on every text, be it this or that; an empty completion is none."""
        outcomes = [outcome for text, outcome in self.tried if text]
        return bool(outcomes) and all(isinstance(o, Failure) and o.kind == "exception" for o in outcomes)

    @property
    def wants_messages(self) -> bool:
        """Whether it always raised, and once by taking a text for something else: `completion[0]["content"]`."""
        said = (failure.message for failure in self.failures)
        return self.always_raised and any(message.startswith(_TAKEN_FOR_MESSAGES) for message in said)

    def cannot_work(self, item: dict[str, Any]) -> Failure | None:
        """The failure that does not depend on what the model writes; `item` is the row it was tried on."""
        if isinstance(self.spec, LikelihoodSpec) and (lacking := self.spec.lacks(item)):
            return Failure("bad_input", lacking)
        failures = self.failures
        alike = {(failure.kind, _ADDRESS.sub("0x…", failure.message)) for failure in failures}
        if len(failures) < max(len(self.tried), 2) or len(alike) != 1 or UNMEASURED in failures:
            return None
        return failures[0]

    def remarks(self) -> str | None:
        """What to tell of a part that failed on some completions, or on all in different ways."""
        failed = [(text, outcome) for text, outcome in self.tried if isinstance(outcome, Failure)]
        if not failed or UNMEASURED in self.failures:
            return None
        text, first = failed[0]
        said = repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "") if text else "an empty text"
        return (
            f"grader '{self.spec.name}' failed on {len(failed)} of {len(self.tried)} completions that it was tried on, "
            f"the first of them {said}: {first.kind}: {first.message}"
        )

    def _failures_held(self) -> int:
        return sum(len(part.failures) for part in self._held)


def refusal(part: Watched, failure: Failure) -> str:
    """Why a job with this grader is not taken, and what to change."""
    form = getattr(part.spec, "form", None)
    hint = {
        "exception": "; code that trips over a text of the wrong form should return 0, or None",
        "timeout": "; raise its timeout, or make it faster",
        "unavailable": "; start the server first, or set the grader's check_connection to false where it starts later",
    }.get(failure.kind, "")
    if failure.kind == "exception" and form is not None and failure.message.startswith(_TAKEN_FOR_MESSAGES):
        hint += "; for conversations, lists of messages, set its form to 'messages'"
    told = f"\n{failure.traceback}" if failure.traceback else ""
    return (
        f"grader '{part.spec.name}' cannot work: tried on the first row, it failed whatever the completion was, an "
        f"empty one and the row's own answer among them: {failure.kind}: {failure.message}{hint}. With "
        f"max_reward_failures = 1 the job is taken all the same.{told}"
    )


def with_form(spec: GraderSpec, chosen: frozenset[int], form: Form) -> GraderSpec:
    """The grader with `form` in those that it is or holds whose `id` is in `chosen`."""
    return each(spec, lambda of: {"form": form} if id(of) in chosen else {})


def with_kept_code(spec: GraderSpec, rules: RewardPermissions, folder: Path) -> GraderSpec:
    """The grader with the hash of its functions' code, which `folder` holds from then on."""
    return each(spec, lambda of: {"sha256": keep(of, rules, folder).sha256} if isinstance(of, FunctionSpec) else {})


def each(spec: GraderSpec, change: Callable[[GraderSpec], dict[str, Any]]) -> GraderSpec:
    """The grader with the fields that `change` gives, in itself and in all that it holds."""
    changed = change(spec)
    for name, value in spec:
        if isinstance(value, GraderSpec):
            changed[name] = each(value, change)
        elif isinstance(value, dict) and any(isinstance(held, GraderSpec) for held in value.values()):
            changed[name] = {key: each(held, change) for key, held in value.items()}
    return spec.model_copy(update=changed) if changed else spec
