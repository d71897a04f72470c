"""`audited`: a share of the groups is scored by a second, better and dearer reward too, to see how often they disagree.

    grader ──► the reward, always
    audit  ──► the component `audit`, of the chosen groups; both work at once

Held here: the reward is the grader's, whatever the audit says; an audit that fails fails nobody, it is counted (the
component `audit_failed`: 1, and 0 where it did not); nothing without a `draw` is audited: no evaluation, no grader that
is tried (a rehearsal tries the audit itself). Which groups are chosen follows from `seed` and the group alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgspec
from pydantic import Field

from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_core.types.reward_statistics import is_in_sample

from ..protocol import Need, Reward, Sample
from .spec import AnyGrader, GraderSpec, Truth

AUDIT = "audit"
AUDIT_FAILED = "audit_failed"
"""Components of an audited completion: the audit's score, and whether it failed."""


class AuditedSpec(GraderSpec):
    """`grader` gives the reward, `audit` is asked beside it."""

    type: Literal["audited"]
    grader: AnyGrader
    audit: AnyGrader
    share: float = Field(default=0.05, ge=0, le=1)
    """Of the groups."""
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """A reward from here on counts as high; the middle of the grader's range by default."""
    audit_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """The same of the audit's score."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    def needs(self) -> frozenset[Need]:
        return self.grader.needs() | self.audit.needs()

    def middle(self) -> float:
        """The threshold, if given."""
        return self.grader.high_from() if self.threshold is None else self.threshold

    def truths(self) -> dict[str, Truth]:
        """The audit, beside what the grader knows."""
        middle = self.audit.high_from() if self.audit_threshold is None else self.audit_threshold
        return {**self.grader.truths(), AUDIT: Truth(middle)}

    def opinions(self) -> dict[str, float]:
        """The grader's."""
        return self.grader.opinions()


class AuditedReward:
    def __init__(self, spec: AuditedSpec, held: Reward, audit: Reward) -> None:
        self._spec = spec
        self._held = held
        self._audit = audit

    async def start(self) -> None:
        """Start both; where one cannot, neither stays."""
        try:
            await self._held.start()
            await self._audit.start()
        except BaseException:
            await self.close()
            raise

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """The grader's outcomes, in order, with the audit's beside the scores."""
        if not self._chosen(samples):
            return await self._held.score(samples)
        outcomes, audits = await asyncio.gather(self._held.score(samples), self._audit.score(samples))
        return [_with_audit(outcome, audit) for outcome, audit in zip(outcomes, audits, strict=True)]

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """See `Rehearsed`: the grader's outcomes; the audit is tried beside it, on all samples."""
        outcomes, _ = await asyncio.gather(self._held.score(samples), self._audit.score(samples))
        return outcomes

    async def close(self) -> None:
        """Close both, whatever becomes of one. Idempotent."""
        try:
            await self._held.close()
        finally:
            await self._audit.close()

    def _chosen(self, samples: Sequence[Sample]) -> bool:
        draw = samples[0].draw if samples else None
        return draw is not None and is_in_sample(self._spec.share, self._spec.seed, AUDIT, draw.group)


def _with_audit(outcome: Outcome, audit: Outcome) -> Outcome:
    if not isinstance(outcome, Score):
        return outcome
    said = {AUDIT: audit.value} if isinstance(audit, Score) else {}
    failed = float(isinstance(audit, Failure))
    return msgspec.structs.replace(outcome, components={**outcome.components, **said, AUDIT_FAILED: failed})
