"""`audited`: scores a share of the groups with a second, more reliable and more expensive reward too, to measure how
often the two disagree.

    grader ──► the reward, of every group
    audit  ──► the component `audit`, of the selected groups; both score at the same time

Invariants: the reward is the grader's, whatever the audit says. A failed audit fails no completion; it is counted, as
the component `audit_failed` (1 if it failed, else 0). Only training is audited: no evaluation, no grader check (a
rehearsal tries the audit itself). Which groups are selected depends on `seed` and the group's number alone.
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
    """`grader` gives the reward, `audit` scores a share of the groups beside it."""

    type: Literal["audited"]
    grader: AnyGrader
    audit: AnyGrader
    share: float = Field(default=0.05, ge=0, le=1)
    """Share of the groups that are audited."""
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """A reward of this value or more counts as high; by default the middle of the grader's range."""
    audit_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """An audit's score of this value or more counts as high; by default the middle of the audit's range."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    def needs(self) -> frozenset[Need]:
        return self.grader.needs() | self.audit.needs()

    def middle(self) -> float:
        """The threshold, if given."""
        return self.grader.high_from() if self.threshold is None else self.threshold

    def truths(self) -> dict[str, Truth]:
        """The audit's score, beside the grader's own truths."""
        middle = self.audit.high_from() if self.audit_threshold is None else self.audit_threshold
        return {**self.grader.truths(), AUDIT: Truth(middle)}

    def opinions(self) -> dict[str, float]:
        """The grader's opinions."""
        return self.grader.opinions()


class AuditedReward:
    def __init__(self, spec: AuditedSpec, grader: Reward, audit: Reward) -> None:
        self._spec = spec
        self._grader = grader
        self._audit = audit

    async def start(self) -> None:
        """Start both; if one fails to start, both are closed."""
        try:
            await self._grader.start()
            await self._audit.start()
        except BaseException:
            await self.close()
            raise

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """The grader's outcomes, in order; the scores of an audited group have the audit's as a component."""
        if not self._is_audited(samples):
            return await self._grader.score(samples)
        outcomes, audits = await asyncio.gather(self._grader.score(samples), self._audit.score(samples))
        return [_with_audit(outcome, audit) for outcome, audit in zip(outcomes, audits, strict=True)]

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """See `Rehearsable`: returns the grader's outcomes; the audit is tried beside it, on all samples."""
        outcomes, _ = await asyncio.gather(self._grader.score(samples), self._audit.score(samples))
        return outcomes

    async def close(self) -> None:
        """Close both, even if closing one fails. Idempotent."""
        try:
            await self._grader.close()
        finally:
            await self._audit.close()

    def _is_audited(self, samples: Sequence[Sample]) -> bool:
        draw = samples[0].draw if samples else None
        return draw is not None and is_in_sample(self._spec.share, self._spec.seed, AUDIT, draw.group)


def _with_audit(outcome: Outcome, audit: Outcome) -> Outcome:
    if not isinstance(outcome, Score):
        return outcome
    audited = {AUDIT: audit.value} if isinstance(audit, Score) else {}
    failed = float(isinstance(audit, Failure))
    return msgspec.structs.replace(outcome, components={**outcome.components, **audited, AUDIT_FAILED: failed})
